"""Where a supernet's tensors are, and which of their elements a network uses."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nasx.arch import Value
from nasx.nn.layout import Index, Rule, Shape, SliceRule, is_whole, take

_KEPT_INDICES = 100_000  # of tensors in one shape each

Indices = tuple[Index | None, ...] | None
"""One index per dimension, None for all elements of it; or None where the whole tensor is used."""


class Store:
    """The tensors of a supernet as its networks find them; all threads share it."""

    def __init__(self, supernet: nn.Module) -> None:
        self.places: dict[str, tuple[dict[str, Any], str]] = {}
        """The dictionary that holds each tensor, and the tensor's name in it; moving a supernet puts others there."""
        for prefix, node in supernet.named_modules():
            dotted = f"{prefix}." if prefix else ""
            for source in (node._parameters, node._buffers):
                self.places |= {dotted + leaf: (source, leaf) for leaf in source}
        if not self.places:
            raise ValueError("the networks of this space have no weights, so there is nothing that they could share")
        floating = (place for place in self.places.values() if place[0][place[1]].is_floating_point())
        self._reference = next(floating, next(iter(self.places.values())))
        self._indices: dict[Any, Indices] = {}

    @property
    def reference(self) -> Tensor:
        """The tensor whose device and precision are taken for those of all."""
        source, leaf = self._reference
        tensor: Tensor = source[leaf]
        return tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its name."""
        return {key: source[leaf] for key, (source, leaf) in self.places.items()}

    def indices(self, name: str, rule: Rule, largest: Shape, wanted: Shape, choices: Mapping[str, Value]) -> Indices:
        """Return the indices of a tensor's slice; architectures that agree in it share them."""
        seen = () if isinstance(rule, SliceRule) else tuple(choices.items())
        key = name, largest, wanted, seen
        if key in (kept := self._indices):
            return kept[key]
        if len(kept) >= _KEPT_INDICES:
            self._indices = {}  # a new one, since another thread may be reading
        found = self._indices[key] = _checked_indices(name, rule, largest, wanted, choices)
        return found


def _checked_indices(name: str, rule: Rule, largest: Shape, wanted: Shape, choices: Mapping[str, Value]) -> Indices:
    if len(largest) != len(wanted) or any(w > s for w, s in zip(wanted, largest, strict=True)):
        raise ValueError(
            f"{name!r} is wanted in the shape {wanted}, but the supernet holds it as {largest}; no network that was "
            "built to size the supernet was as large. Is the builder a function of the architecture alone?"
        )
    try:
        indices = tuple(rule(name, largest, wanted, choices))
    except ValueError as error:
        raise ValueError(f"the layout of {name!r} gives no {wanted} of {largest}: {error}") from error
    if len(indices) != len(largest):
        raise ValueError(
            f"the layout of {name!r} gives {len(indices)} indices, but a tensor of the shape {largest} needs "
            f"{len(largest)}, one per dimension"
        )
    shape = tuple(take(torch.empty(largest, device="meta"), indices).shape)
    if shape != wanted:
        raise ValueError(f"the layout of {name!r} gives the shape {shape} of {largest}, but {wanted} is wanted")
    needed = tuple(None if is_whole(index, size) else index for index, size in zip(indices, largest, strict=True))
    return needed if any(index is not None for index in needed) else None
