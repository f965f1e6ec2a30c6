"""Two sets of images as one, such as training and validation images for a last training on both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nasx.data.broken import BrokenImage, refuse_broken
from nasx.data.dataset import ImageArray, Images, Indices, Photos


def joined_images(first: Images, second: Images) -> Images:
    """Return two sets of images as one."""
    if isinstance(first, Photos) and isinstance(second, Photos):
        return _JoinedPhotos(first, second)
    pixels = np.concatenate([part.load(np.arange(len(part))).numpy() for part in (first, second)])
    return ImageArray(pixels, np.concatenate([first.labels, second.labels]))


class _JoinedPhotos:
    """Two sets of photographs as one; positions of the second follow those of the first."""

    def __init__(self, first: Photos, second: Photos) -> None:
        self._parts = first, second
        self.labels = np.concatenate([first.labels, second.labels])
        self.image_size, self.channels = first.image_size, first.channels
        self.in_memory = first.in_memory and second.in_memory
        self.broken = {**first.broken, **{len(first) + at: fault for at, fault in second.broken.items()}}

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return the file at this position."""
        part, at = self._place(range(len(self))[index])
        return part.path(at)

    def photo(self, index: int) -> Any:
        """Return the photograph at this position."""
        part, at = self._place(index)
        return part.photo(at)

    def load(self, indices: Indices | Sequence[int]) -> Tensor:
        """Return the images at these positions."""
        pixels, faults = self.read(indices)
        refuse_broken(faults)
        return pixels

    def read(self, indices: Indices | Sequence[int]) -> tuple[Tensor, dict[int, BrokenImage]]:
        """Return what `load` does, with the broken ones among them by position."""
        chosen, first = np.asarray(indices), len(self._parts[0])
        pixels = torch.zeros((len(chosen), self.channels, self.image_size, self.image_size), dtype=torch.uint8)
        faults: dict[int, BrokenImage] = {}
        for part, offset, rows in ((self._parts[0], 0, chosen < first), (self._parts[1], first, chosen >= first)):
            if rows.any():
                found, broken = part.read(chosen[rows] - offset)
                pixels[torch.from_numpy(rows)] = found
                faults |= {offset + at: fault for at, fault in broken.items()}
        return pixels, faults

    def _place(self, index: int) -> tuple[Photos, int]:
        first, second = self._parts
        return (first, index) if index < len(first) else (second, index - len(first))
