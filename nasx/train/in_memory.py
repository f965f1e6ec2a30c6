"""Samples in the memory of the device that uses them, for scoring many models on the same ones."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy import int64
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from nasx.train.batch import Batches, Unpack, Unpacked, batch_size, move, unpack


class InMemorySamples:
    """Unpacked samples in the memory of one device.

    `load_into_memory` makes them: `whole` is one batch of all `samples`. Their batches are `Unpacked`, as `train`,
    `evaluate` and `recalibrate` take them.
    """

    def __init__(self, whole: Unpacked, samples: int) -> None:
        self._whole, self._samples = whole, samples

    def __len__(self) -> int:
        return self._samples

    def batches(self, size: int, indices: NDArray[int64] | Sequence[int] | None = None) -> Iterator[Unpacked]:
        """Yield all samples, or those at `indices`, in order, in as few batches of at most `size` as possible.

        Batches are of about equal size, because a short last one costs almost as much as a full one. Raises ValueError
        for a `size` below 1.
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


def load_into_memory(
    batches: Batches, device: torch.device | str, *, unpack: Unpack = unpack, at_most: int = 2**30
) -> InMemorySamples | None:
    """Copy all samples of some batches, split by `unpack`, to a device; return None where that is impossible.

    It is impossible where they take more than `at_most` bytes, where the tensors of two batches differ in more than
    their first dimension (texts padded batch by batch), or where the first dimension of a tensor differs from that of
    the targets. The iterator is then partly used up: make the batches again. Raises ValueError for no batches.
    """
    device = torch.device(device)
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
        raise ValueError("there are no batches to load")
    whole = [torch.cat(parts) for parts in zip(*found, strict=True)]
    return InMemorySamples(Unpacked(*tree_unflatten(whole, shape[0])), samples)


def _rows(tensor: Tensor, taken: slice | Tensor) -> Tensor:
    return tensor[taken] if isinstance(taken, slice) else tensor[taken.to(tensor.device)]
