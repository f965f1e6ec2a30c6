"""Reading ahead in worker processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


def read_ahead(read: Callable[[T], Tensor], requests: Sequence[T], workers: int) -> Iterator[Tensor]:
    """Yield `read` of every request, in order; with workers, each of them reads up to two requests ahead.

    `read` must be picklable where processes are not forked. A ValueError is raised here as it was raised there.
    """
    if not workers:
        yield from map(read, requests)
        return
    loader = DataLoader(
        _Reads(read, requests),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # unused, but without it one number is drawn from the global generator
    )
    for pixels in loader:
        if isinstance(pixels, ValueError):
            raise pixels
        yield pixels


@dataclass(frozen=True)
class _Reads(Dataset[Tensor | ValueError], Generic[T]):
    read: Callable[[T], Tensor]
    requests: Sequence[T]

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, position: int) -> Tensor | ValueError:
        try:
            return self.read(self.requests[position])
        except ValueError as error:  # raised, it would reach the user wrapped in the worker's traceback
            return error
