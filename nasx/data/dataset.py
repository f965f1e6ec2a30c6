"""What a labelled data set is to the rest of the library: two sets of images at hand, and a third kept shut."""

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasx.data.broken import BrokenImage

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

    `image_size` and `channels` (1 or 3) are what `load` makes of them; `in_memory` says that `load` only copies, so
    that worker processes have nothing to read. `broken` holds, by position, the images that training found broken and
    skipped. `load` and `photo` raise BrokenImageError for an image that cannot be read.
    """

    image_size: int
    channels: int
    in_memory: bool
    broken: dict[int, BrokenImage]

    def path(self, index: int) -> Path:
        """Return the file at this position."""

    def photo(self, index: int) -> Any:
        """Return a photograph as a PIL image in RGB, or grey (L) where `channels` is 1, at its own size."""

    def read(self, indices: Indices | Sequence[int]) -> tuple[Tensor, dict[int, BrokenImage]]:
        """Return what `load` does, with the broken ones among them by position; their pixels mean nothing."""


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

    @property
    def nbytes(self) -> int:
        """The size of all pixels in bytes."""
        return self._pixels.nbytes

    def load(self, indices: Indices | Sequence[int]) -> Tensor:
        """Return copies of the images at these positions, uint8 (B, C, H, W)."""
        return self._pixels[torch.as_tensor(indices, dtype=torch.long)]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set, split: `train` and `val` for all that is fitted or chosen, the test images behind `open_test`.

    `split` is a JSON-able record of how the parts came about (seed, rule, counts, digests of the members' names and
    contents), so that a run can say what it was computed from. `test` is given as a function, called when the images
    are wanted. `remarks` are sentences that people should read before they use the data: what was skipped, what was
    assumed, what is too small to mean much. Labels that `classes` does not have are a ValueError.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    train: Images
    val: Images
    split: dict[str, Any]
    test: InitVar[Callable[[], Images]]
    remarks: tuple[str, ...] = ()
    _open: Callable[[], Images] = field(init=False, repr=False)

    def __post_init__(self, test: Callable[[], Images]) -> None:
        object.__setattr__(self, "_open", test)
        self._check_labels("training", self.train)
        self._check_labels("validation", self.val)

    @property
    def broken(self) -> tuple[BrokenImage, ...]:
        """The training images that could not be read and were passed over, so far and in this process."""
        found = self.train.broken if isinstance(self.train, Photos) else {}
        return tuple(found[index] for index in sorted(found))

    def open_test(self) -> Images:
        """Return the test images; the final evaluation alone calls this, and nothing decodes them before."""
        images = self._open()
        self._check_labels("test", images)
        return images

    def _check_labels(self, part: str, images: Images) -> None:
        wrong = np.flatnonzero((images.labels < 0) | (images.labels >= len(self.classes)))
        if len(wrong):
            raise ValueError(
                f"{len(wrong):,} {part} images have labels outside of 0..{len(self.classes) - 1}, such as "
                f"{images.labels[wrong[0]]} at position {wrong[0]}; {self.name} has {len(self.classes)} classes"
            )
