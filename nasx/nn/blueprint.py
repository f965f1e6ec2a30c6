"""What a network is made of: names, shapes and kinds of its tensors, as a supernet learns them from a skeleton."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from nasx.arch import Arch, Value
from nasx.nn.layout import Shape
from nasx.nn.skeleton import parametrization_message


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
                    raise ValueError(parametrization_message(kind))
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
