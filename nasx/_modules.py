"""What decides how a network computes beside the values of its tensors."""

import torch
from torch import nn


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


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | torch.dtype | None) and value == value
