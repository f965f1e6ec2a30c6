"""A labelled set of photographs that are decoded when they are asked for, or kept in memory once they were."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from nasx.data.broken import BrokenImage, BrokenImageError, refuse_broken
from nasx.data.dataset import Indices
from nasx.data.decode import Channels, decode_content, fault_of, pillow, refuse_sizes
from nasx.data.readers import now_reading
from nasx.data.sources import Source

SMALL = 64
"""Pixels up to which images are used whole; of larger ones, the margin is cut off."""


class PhotoSet:
    """Labelled photographs: shorter side resized, then the centre cropped to `image_size`.

    Up to 64 pixels the crop is as long as the shorter side, and images that have the size already are not resampled;
    above, it is 224/256 of it, as published evaluations of photographs have it. `decode` says what becomes of other
    modes. Nothing is read before the first `load`, `read` or `keep`, which read all where `in_memory` is true. What
    cannot be read is a BrokenImageError from `load` and `photo`, and is listed by `read`.
    """

    def __init__(
        self,
        source: Source,
        labels: NDArray[np.int64],
        image_size: int,
        *,
        in_memory: bool,
        channels: Channels = 3,
    ) -> None:
        self.source, self.labels = source, labels
        self.image_size, self.channels, self.in_memory = image_size, channels, in_memory
        self.broken: dict[int, BrokenImage] = {}
        self._kept: tuple[Tensor, dict[int, BrokenImage]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def path(self, index: int) -> Path:
        """Return what the photograph at this position is called."""
        return self.source.path(index)

    def load(self, indices: Indices | Sequence[int]) -> Tensor:
        """Return the images at these positions, uint8 (B, C, image_size, image_size)."""
        pixels, faults = self.read(indices)
        refuse_broken(faults)
        return pixels

    def read(self, indices: Indices | Sequence[int]) -> tuple[Tensor, dict[int, BrokenImage]]:
        """Return what `load` does, with the broken ones among them by position; their pixels mean nothing."""
        if not self.in_memory:
            return self._decode(indices)
        pixels, faults = self.keep()
        return (
            pixels[torch.as_tensor(indices, dtype=torch.long)],
            {int(index): faults[int(index)] for index in indices if int(index) in faults},
        )

    def keep(self, on_read: Callable[[], object] = lambda: None) -> tuple[Tensor, dict[int, BrokenImage]]:
        """Read all images into memory, unless that is done, and return what `read` does; `on_read` follows each."""
        if self._kept is None:
            self._kept = self._decode(range(len(self)), on_read)
        return self._kept

    def photo(self, index: int) -> Any:
        """Return the photograph at this position as a PIL image in RGB, or grey, at its own size."""
        path = self.source.path(index)
        try:
            content = self.source.content(index)
        except (OSError, ValueError) as error:
            broken = BrokenImage(path, fault_of(error))
            raise BrokenImageError(f"{broken}; replace or remove it", (broken,)) from error
        return decode_content(content, path, self.channels)

    def _decode(
        self, indices: Indices | Sequence[int], on_read: Callable[[], object] = lambda: None
    ) -> tuple[Tensor, dict[int, BrokenImage]]:
        size = self.image_size
        pixels = np.zeros((len(indices), self.channels, size, size), dtype=np.uint8)
        pillow()  # refused here, and not in a thread

        def read(row: int) -> BrokenImage | None:
            index = int(indices[row])
            now_reading(index)
            try:
                image = self.photo(index)
            except BrokenImageError as error:
                return error.broken[0]
            try:
                pixels[row] = fit_photo(image, size)
            except ValueError as error:
                return BrokenImage(self.path(index), str(error))
            return None

        faults: dict[int, BrokenImage] = {}
        # Pillow decodes outside of Python's global lock. A worker process is one of several and keeps to one core.
        with ThreadPoolExecutor(1 if get_worker_info() else None) as pool:
            results: Any = pool.map(read, range(len(indices)))
            with closing(results):  # which cancels the rest when interrupted
                for row, fault in enumerate(results):
                    if fault:
                        faults[int(indices[row])] = fault
                    on_read()
        return torch.from_numpy(pixels), faults


def fit_photo(photo: Any, image_size: int) -> NDArray[np.uint8]:
    """Return the centred square of a PIL image in RGB or grey, as `PhotoSet` has it: uint8 (C, image_size, image_size).

    A ValueError says that the image, once resized, would have too many pixels.
    """
    side, size = resized_side(image_size), photo.size
    if size != (side, side):
        refuse_sizes(size, side)
        size = side * size[0] // min(size), side * size[1] // min(size)  # rounded as torchvision does, as is the crop
        photo = photo.resize(size, pillow().Resampling.BICUBIC)
    left, top = (round((pixels - image_size) / 2) for pixels in size)
    square = np.asarray(photo.crop((left, top, left + image_size, top + image_size)))
    return square.reshape(image_size, image_size, -1).transpose(2, 0, 1).copy()  # the photo's own pixels are read-only


def resized_side(image_size: int) -> int:
    """Return what the shorter side is resized to before the centre is cropped."""
    return image_size if image_size <= SMALL else image_size * 256 // 224
