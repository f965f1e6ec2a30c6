"""Networks whose parameters have names and shapes but no values: what a supernet learns shapes from and computes with.

A skeleton's parameters lie on `meta` and are never initialised. Its buffers are real, because some of them are
computed (rotary tables, indices of relative positions) and belong to the network rather than to its weights.
"""

import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import CodeType, FrameType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import (
    _EXTRA_STATE_KEY_SUFFIX,
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _Orthogonal
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from nasx._arguments import check_archs
from nasx._modules import description
from nasx.arch import Arch, Value
from nasx.nn.layout import Shape

Make = Callable[[Arch], nn.Module]
"""Builds the network of an architecture as plain torch."""

Site = tuple[tuple[CodeType, int], ...]
"""Where in the builder's code a module was made: its call stack, as code objects and instructions."""


_LOADING = nn.Module._load_from_state_dict.__code__


class _OnMeta(TorchFunctionMode):
    """Lets a builder treat parameters on `meta` as any others: filling, loading and moving them does nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")
        if isinstance(first, nn.Parameter):
            word = getattr(func, "__name__", "")
            if word.endswith("_") and not word.endswith("__") and word != "requires_grad_":
                return first
            if getattr(func, "__self__", None) is Tensor.is_meta and sys._getframe(1).f_code is _LOADING:
                return False  # else each would be warned of
            if func in (Tensor.cpu, Tensor.cuda):
                return first
            if func is Tensor.to:
                _, dtype, *_ = torch._C._nn._parse_to(*args[1:], **kwargs)
                return first if dtype in (None, first.dtype) else torch.empty_like(first, dtype=dtype)
        return func(*args, **kwargs)


_registering = threading.local()
_of_earlier_builds = WeakIdKeyDictionary()
"""The modules with tensors that builders have returned, and the parameters that outlived their networks' building."""


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    made: WeakIdKeyDictionary | None = getattr(_registering, "made", None)
    if made is None or parameter is None:
        return None
    _refuse_lazy(module, name, parameter)
    if parameter.device.type == "meta":
        return None
    if parameter not in made:
        if parameter in _of_earlier_builds:
            raise ValueError(_shared(f"the parameter {name!r} of a {type(module).__name__}"))
        made[parameter] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    kept: nn.Parameter = made[parameter]  # one for all places of a tied parameter
    return kept


def _refuse_lazy(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    if tensor is not None and is_lazy(tensor) and getattr(_registering, "made", None) is not None:
        kind = type(module).__name__
        raise ValueError(
            f"the builder makes a {kind}, the size of whose {name!r} a first batch decides, but names and sizes must "
            f"follow from the architecture when the network is built; use {kind.replace('Lazy', '')} and give it its "
            "sizes"
        )


class NeedsWeights(ValueError):
    """A network cannot be built without the values of its weights."""


def _refuse_orthogonal(module: nn.Module, name: str, part: nn.Module | None) -> None:
    if isinstance(part, _Orthogonal) and getattr(_registering, "made", None) is not None:
        raise NeedsWeights(_parametrized("orthogonal"))


def _parametrized(kind: str) -> str:
    return (
        f"the builder makes a layer with the parametrization {kind!r}, which computes tensors from the layer's weights "
        "when it is built, but a network of a supernet takes its weights afterwards; use one that computes all in "
        "`forward`, such as torch.nn.utils.parametrizations.weight_norm, or none"
    )


# for good: another thread may be registering parameters when it would come or go; it does nothing outside of skeletons
register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]  # what it returns is taken
register_module_buffer_registration_hook(_refuse_lazy)
register_module_module_registration_hook(_refuse_orthogonal)


def check_builder(make: object, space: object, call: str) -> None:
    """Refuse a space or a builder that is none with a TypeError that says how a function is called, `call`."""
    check_archs(space, call)
    if isinstance(make, nn.Module):
        raise TypeError(
            f"`make` must build the network of any architecture, but got one network, a {type(make).__name__}; pass "
            f"its class, or a function of an architecture: {call}"
        )
    if not callable(make):
        raise TypeError(f"`make` must be a function or class that builds a network, but got {make!r}; write {call}")


def build_skeleton(make: Make, arch: Arch) -> nn.Module:
    """Return the network of an architecture with parameters on `meta` and real buffers; draws nothing from generators.

    Buffers are ordinary tensors, whatever inference mode or default device is set. A ValueError or TypeError of the
    builder comes with the architecture as a note. Lazy modules, whose sizes a first batch decides, are a ValueError,
    and so are orthogonal parametrizations (`NeedsWeights`), and modules and parameters of an earlier network. Modules
    that the builder copies or unpickles keep their values.
    """
    real = torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext()
    outer, _registering.made = getattr(_registering, "made", None), WeakIdKeyDictionary()
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), real, _OnMeta():
            network = call_builder(make, arch)
        refuse_shared(network)
        _of_earlier_builds.update((module, None) for module in network.modules() if _holds_tensors(module))
        _of_earlier_builds.update(_registering.made)
        return network
    finally:
        _registering.made = outer


def refuse_shared(network: nn.Module) -> None:
    """Refuse a network with modules or parameters of an earlier skeleton, before anything is done to them."""
    for name, module in network.named_modules():
        if module in _of_earlier_builds:
            kind = type(module).__name__
            raise ValueError(_shared(f"the {kind} {name!r}" if name else f"one {kind}"))
    for name, parameter in network.named_parameters():
        if parameter in _of_earlier_builds:
            raise ValueError(_shared(f"the parameter {name!r}"))


def _holds_tensors(module: nn.Module) -> bool:
    return any(tensor is not None for of in (module._parameters, module._buffers) for tensor in of.values())


def _shared(what: str) -> str:
    return (
        f"the builder gives {what} to several networks, but each must have tensors of its own; make it in the builder, "
        "or copy it there, as in copy.deepcopy(backbone), and cache no networks"
    )


def call_builder(make: Make, arch: Arch) -> nn.Module:
    """Return what a builder makes of an architecture, refused with TypeError where it is no torch module."""
    try:
        network = make(arch)
    except Exception as error:
        error.add_note(f"while building the network of {dict(arch)}")
        raise
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"the builder must return a torch.nn.Module, but gave {type(network).__name__} for {dict(arch)}"
        )
    return network


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build networks under a default precision; it is set for the whole process, where it is another one."""
    outer = torch.get_default_dtype()
    if outer == dtype:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(outer)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the blueprint of a network says of one of its parameters or shared buffers."""

    shape: Shape
    dtype: torch.dtype
    owner: type[nn.Module]
    trained: bool
    """Whether it is a parameter that gradients are wanted for."""
    tied_to: str
    """The first name of the same tensor: its own, where it has no other."""
    is_buffer: bool = False
    start: Value | None = None
    """The number that a buffer holds everywhere when it is made (0 for statistics), or None where it was computed."""

    groups: int = 1
    """Into how many groups a convolution of this weight cuts its channels, or grouped-query attention its queries."""

    @property
    def kind(self) -> str:
        """What a tensor of another architecture must agree in to be the same tensor."""
        return f"{len(self.shape)}-dimensional {'buffer' if self.is_buffer else 'parameter'} of {self.owner.__name__}"


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Names and shapes of one network, and how long its numbered containers are."""

    arch: Arch
    tensors: dict[str, TensorInfo]
    containers: dict[str, int]

    def without(self, names: Collection[str]) -> "Blueprint":
        """Return the blueprint without some of its tensors."""
        return replace(self, tensors={name: info for name, info in self.tensors.items() if name not in names})


def blueprint(network: nn.Module, arch: Arch) -> Blueprint:
    """Return the blueprint of a skeleton, with the buffers that its state dict has.

    A ValueError names a buffer that is computed from weights, which a skeleton does not have, or a module with state
    that is neither parameter nor buffer, such as a quantised one.
    """
    tensors: dict[str, TensorInfo] = {}
    first_names: dict[int, str] = {}
    for prefix, module in network.named_modules(remove_duplicate=False):
        dotted = f"{prefix}." if prefix else ""
        _refuse_packed(module, prefix)
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                name, shape = dotted + leaf, tuple(parameter.shape)
                tied = first_names.setdefault(id(parameter), name)
                groups = _groups(network, prefix, module) if leaf == "weight" else 1
                tensors[name] = TensorInfo(
                    shape, parameter.dtype, type(module), parameter.requires_grad, tied, groups=groups
                )
        for leaf, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                if (kind := _parametrization(network, prefix)) is not None:
                    raise ValueError(_parametrized(kind))
                raise ValueError(
                    f"the buffer {dotted + leaf!r} is computed from weights when the network is built, but a network "
                    "of a supernet takes its weights afterwards; compute it in `forward`"
                )
            if buffer is not None and leaf not in module._non_persistent_buffers_set:
                name, shape = dotted + leaf, tuple(buffer.shape)
                tied = first_names.setdefault(id(buffer), name)
                tensors[name] = TensorInfo(shape, buffer.dtype, type(module), False, tied, True, _start(module, buffer))
    containers = {name: len(module) for name, module in network.named_modules() if _is_numbered(module)}
    return Blueprint(arch, tensors, containers)


def _groups(network: nn.Module, name: str, module: nn.Module) -> int:
    if isinstance(module, _ConvNd):
        return module.groups
    parent, _, leaf = name.rpartition(".")
    if leaf == "q_proj" and hasattr(attention := network.get_submodule(parent), "num_key_value_groups"):
        keys, size = getattr(attention, "k_proj", None), getattr(attention, "head_dim", None)  # as in `transformers`
        if isinstance(keys, nn.Linear) and isinstance(size, int) and size:
            return max(1, keys.out_features // size)
    return 1


def _refuse_packed(module: nn.Module, name: str) -> None:
    if type(module)._save_to_state_dict is nn.Module._save_to_state_dict:
        return
    state: dict[str, Any] = {}
    module._save_to_state_dict(state, "", True)
    others = [leaf for leaf in state if leaf not in {*module._parameters, *module._buffers, _EXTRA_STATE_KEY_SUFFIX}]
    if others:
        raise ValueError(
            f"the state dict of the module {name!r}, a {type(module).__name__}, holds {others[0]!r}, which is neither "
            "a parameter nor a buffer, so networks cannot share it; make it one, or quantise the extracted network"
        )


def _parametrization(network: nn.Module, name: str) -> str | None:
    """Return what a parametrization is called that a module is, or that it has by a hook."""
    module = network.get_submodule(name)
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        return "spectral_norm"
    if name and isinstance(network.get_submodule(name.rpartition(".")[0]), ParametrizationList):
        return {"_SpectralNorm": "spectral_norm"}.get(type(module).__name__, type(module).__name__)
    return None


def _is_numbered(module: nn.Module) -> TypeGuard[nn.Sequential | nn.ModuleList]:
    if not isinstance(module, nn.Sequential | nn.ModuleList):
        return False
    return all(name == str(number) for number, name in enumerate(module._modules))


def _start(module: nn.Module, buffer: Tensor) -> Value | None:
    if isinstance(module, _NormBase):  # whose statistics a builder may have loaded
        return 0
    if buffer.is_complex() or not buffer.numel():
        return None
    first = buffer.reshape(-1)[0]
    return first.item() if bool(torch.eq(buffer, first).all()) else None


def computed_buffers(prints: Iterable[Blueprint]) -> set[str]:
    """Return the names of buffers that are no state which training changes, but tables that the builder computes.

    State, such as BatchNorm's statistics, starts from one number everywhere and in every architecture.
    """
    starts: dict[str, set[Value | None]] = {}
    for found in prints:
        for name, info in found.tensors.items():
            if info.is_buffer:
                starts.setdefault(name, set()).add(info.start)
    return {name for name, values in starts.items() if len(values) > 1 or None in values}


def check_repeatable(make: Make, arch: Arch) -> None:
    """Refuse a builder that makes two different networks of one architecture; ValueError names what differs."""
    made = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made.append(build_skeleton(make, arch))
    first, second = map(description, made)
    for name in [*first, *second]:
        if first.get(name) != second.get(name):
            raise ValueError(
                "the builder must be a function of the architecture, but two networks of one architecture differ in "
                f"{name!r}: {first.get(name)!r} and {second.get(name)!r}"
            )
    drawn = dict(made[1].named_buffers())
    for name, buffer in made[0].named_buffers():
        if not buffer.is_meta and not torch.equal(buffer.nan_to_num(), drawn[name].nan_to_num()):
            raise ValueError(
                f"the buffer {name!r} holds other numbers each time the network is built, so the builder is no "
                "function of the architecture; make it a parameter with requires_grad=False, which architectures "
                "share, or draw it from a generator with a seed of its own"
            )


@contextmanager
def construction_sites() -> Iterator[Callable[[nn.Module], Site]]:
    """Record where modules are made; the function that it gives returns a module's site.

    While it is open, `nn.Module.__init__` is replaced for this process: open it briefly.
    """
    sites: dict[int, Site] = {}
    kept: list[nn.Module] = []  # so that no two modules have one id
    original, thread = nn.Module.__init__, threading.get_ident()

    def record(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if threading.get_ident() != thread or id(self) in sites:
            return
        kept.append(self)
        frame: FrameType | None = sys._getframe(1)
        stack = []
        while frame is not None and frame.f_code is not call_builder.__code__:
            # constructors between this one and the builder's own call say nothing about the place
            if frame.f_locals.get("self") is not self:
                stack.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        sites[id(self)] = tuple(stack)

    nn.Module.__init__ = record  # type: ignore[method-assign]
    try:
        yield lambda module: sites.get(id(module), ())
    finally:
        nn.Module.__init__ = original  # type: ignore[method-assign]
