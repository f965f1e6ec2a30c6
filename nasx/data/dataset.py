"""What a labelled data set is to the rest of the library: two sets of images at hand, and a third kept shut."""

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]


class Images(Protocol):
    """A labelled set of images: `labels` is int64 (n,), counted from 0 in the order of the class names."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every image."""

    def __len__(self) -> int:
        """Return the number of images."""

    def load(self, indices: Indices | Sequence[int]) -> Tensor:
        """Return the images at these positions, uint8 (B, C, H, W); 255 is full intensity."""


@runtime_checkable
class Photos(Images, Protocol):
    """Images that also give the photographs they were made from, for augmentation at full resolution.

    `image_size` is what `load` resizes to; `in_memory` says that `load` only copies, so that worker processes have
    nothing to read.
    """

    image_size: int
    in_memory: bool

    def photo(self, index: int) -> Any:
        """Return a photograph as a PIL image in RGB, at its own size."""


class ImageArray:
    """Images held in memory: pixels uint8 (n, C, H, W), labels int64 (n,)."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or labels.shape != pixels.shape[:1]:
            raise ValueError(
                "images are uint8 (n, C, H, W) with one label each, "
                f"but got {pixels.dtype} {pixels.shape} and labels {labels.shape}"
            )
        self._pixels = torch.from_numpy(pixels)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, indices: Indices | Sequence[int]) -> Tensor:
        """Return copies of the images at these positions, uint8 (B, C, H, W)."""
        return self._pixels[torch.as_tensor(indices, dtype=torch.long)]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set, split: `train` and `val` for all that is fitted or chosen, the test images behind `open_test`.

    `split` is a JSON-able record of how the parts came about (seed, rule, counts, digests of the member names), so
    that a run can say what it was computed from. `test` is given as a function, called when the images are wanted.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    train: Images
    val: Images
    split: dict[str, Any]
    test: InitVar[Callable[[], Images]]
    _open: Callable[[], Images] = field(init=False, repr=False)

    def __post_init__(self, test: Callable[[], Images]) -> None:
        object.__setattr__(self, "_open", test)

    def open_test(self) -> Images:
        """Return the test images; the final evaluation alone calls this, and nothing reads them before."""
        return self._open()
