"""Samples held in memory where they are used, for models that are scored on the same ones again and again."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy import int64
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from nasx.train.batch import Batches, Unpack, Unpacked, batch_size, move, unpack


class HeldSamples:
    """Samples taken apart, on one device, that any number of models is called with.

    `hold` makes it. Its batches are `Unpacked`, as `train`, `evaluate` and `recalibrate` take them.
    """

    def __init__(self, whole: Unpacked, samples: int) -> None:
        self._whole, self._samples = whole, samples

    def __len__(self) -> int:
        return self._samples

    def batches(self, size: int, indices: NDArray[int64] | Sequence[int] | None = None) -> Iterator[Unpacked]:
        """Yield all samples, or those at some positions, in order, in as few batches of at most `size` as there can be.

        The batches are of about equal size, for a short last one costs almost as much as a whole one.
        """
        if size < 1:
            raise ValueError(f"a batch holds at least one sample, but got {size}")
        rows = None if indices is None else torch.as_tensor(indices, dtype=torch.long)
        count = self._samples if rows is None else len(rows)
        parts = -(-count // size)
        for part in range(parts):
            first, last = count * part // parts, count * (part + 1) // parts
            taken = slice(first, last) if rows is None else rows[first:last]
            yield tree_map(lambda t, taken=taken: _rows(t, taken) if isinstance(t, Tensor) else t, self._whole)


def hold(
    batches: Batches, device: torch.device, *, unpack: Unpack = unpack, at_most: int = 2**30
) -> HeldSamples | None:
    """Return all samples of some batches as samples held on a device, or None where they cannot be.

    They cannot be where they take more than `at_most` bytes, where the tensors of two batches differ in more than
    their first dimension (texts padded batch by batch), or where a batch holds tensors of another first dimension than
    its targets'. The batches have been used up in part then: make them again.
    """
    found: list[list[Any]] = []
    shape: Any = None
    samples = size = 0
    for batch in batches:
        unpacked = unpack(batch)
        count = batch_size(unpacked.targets)
        leaves, structure = tree_flatten(tuple(unpacked))
        own = [(t.shape[1:], t.dtype) if isinstance(t, Tensor) and t.ndim else None for t in leaves]
        if any(kind is None or len(t) != count for kind, t in zip(own, leaves, strict=True)):
            return None
        if shape is not None and shape != (structure, own):
            return None
        shape = structure, own
        size += sum(t.nbytes for t in leaves)
        if size > at_most:
            return None
        found.append(move(leaves, device))
        samples += count
    if not found:
        raise ValueError("there are no batches to hold")
    whole = [torch.cat(parts) for parts in zip(*found, strict=True)]
    return HeldSamples(Unpacked(*tree_unflatten(whole, shape[0])), samples)


def _rows(tensor: Tensor, taken: slice | Tensor) -> Tensor:
    return tensor[taken] if isinstance(taken, slice) else tensor[taken.to(tensor.device)]
