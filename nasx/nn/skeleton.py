"""Networks whose parameters have names and shapes but no values: what a supernet learns shapes from and computes with.

A skeleton's parameters lie on `meta` and are never initialised. Its buffers are real, because some of them are
computed (rotary tables, indices of relative positions) and belong to the network rather than to its weights.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _Orthogonal
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from nasx.arch import Arch

Make = Callable[[Arch], nn.Module]
"""Builds the network of an architecture as plain torch."""

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
        raise NeedsWeights(parametrization_message("orthogonal"))


def parametrization_message(kind: str) -> str:
    """Return the message that refuses a parametrization."""
    return (
        f"the builder makes a layer with the parametrization {kind!r}, which computes tensors from the layer's weights "
        "when it is built, but a network of a supernet takes its weights afterwards; use one that computes all in "
        "`forward`, such as torch.nn.utils.parametrizations.weight_norm, or none"
    )


# for good: another thread may be registering parameters when it would come or go; it does nothing outside of skeletons
register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]  # what it returns is taken
register_module_buffer_registration_hook(_refuse_lazy)
register_module_module_registration_hook(_refuse_orthogonal)


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
