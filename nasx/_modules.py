"""What decides how a network computes beside the values of its tensors, and copies of networks."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def description(network: nn.Module) -> dict[str, object]:
    """Return the types, plain attributes, shapes and frozen parameters of a network, by dotted names."""
    found: dict[str, object] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        found[name] = f"{type(module).__module__}.{type(module).__qualname__}"
        for key, value in vars(module).items():
            if not key.startswith("_") and _is_plain(value):
                found[f"{name}.{key}".lstrip(".")] = value
        for tensors in (module._parameters, module._buffers):
            for leaf, tensor in tensors.items():
                if tensor is not None:
                    found[f"{name}.{leaf}".lstrip(".")] = tuple(tensor.shape)
                if isinstance(tensor, nn.Parameter):
                    found[f"{name}.{leaf}.requires_grad".lstrip(".")] = tensor.requires_grad
    return found


def copied(network: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a network, with what `memo` has in place of other objects, by their ids.

    Unlike `copy.deepcopy` it takes functions of `torch.jit.script`, which nobody changes, and tensors that a hook
    computes before each pass, as torch's earlier `weight_norm` does.
    """
    memo = {} if memo is None else memo
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, torch.jit.ScriptFunction):
                memo.setdefault(id(value), value)
            elif isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(network, memo)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | torch.dtype | None) and value == value
