"""Augmentation of whole batches: everything is drawn at once, for every sample its own, then applied to any rows.

Shapes: B samples of the global batch, R of them taken, C channels, H x W pixels.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Random erasing as timm has it by default: area as a share of the image, aspect ratio, tries until a rectangle fits.
_AREA = (0.02, 1 / 3)
_ASPECT = (0.3, 1 / 0.3)
_TRIES = 10


class Draws(NamedTuple):
    """What was drawn for every sample, each (B,) but for the rectangles (B, 4): top, left, height, width."""

    tops: Tensor
    lefts: Tensor
    flipped: Tensor
    erased: Tensor
    rectangles: Tensor
    noise_seeds: Tensor

    def take(self, rows: Tensor) -> "Draws":
        """Return the draws of some samples."""
        return Draws(*(drawn[rows] for drawn in self))


@dataclass(frozen=True, slots=True)
class Augment:
    """Random crop after zero padding by `pad_crop` pixels, horizontal flip, random erasing with probability `erase`.

    Erasing fills a rectangle of the normalised image with unit Gaussian noise (Zhong et al., Random Erasing Data
    Augmentation, 2020; per pixel as DeiT does). Raises ValueError for a negative padding or no probability.
    """

    pad_crop: int = 0
    flip: bool = False
    erase: float = 0.0

    def __post_init__(self) -> None:
        if self.pad_crop < 0:
            raise ValueError(f"pad_crop counts pixels and must not be negative, but got {self.pad_crop}")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"erase is a probability in 0..1, but got {self.erase}")

    def draw(self, samples: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw for a whole batch of images of size (H, W).

        All is drawn whatever is switched on, so that switching one on leaves the others' draws alone.
        """
        tops, lefts = torch.randint(2 * self.pad_crop + 1, (2, samples), generator=generator)
        flips, erasures = torch.rand((2, samples), generator=generator)
        rectangles = _draw_rectangles(samples, size, generator)
        return Draws(
            tops=tops,
            lefts=lefts,
            flipped=(flips < 0.5) & self.flip,
            erased=erasures < self.erase,
            rectangles=rectangles,
            noise_seeds=torch.randint(2**62, (samples,), generator=generator),
        )

    def crop_and_flip(self, images: Tensor, draws: Draws) -> Tensor:
        """Return uint8 images (R, C, H, W) shifted and mirrored as drawn for them."""
        if not (self.pad_crop or self.flip):
            return images
        samples, channels, height, width = images.shape
        down = draws.tops[:, None] + torch.arange(height)
        columns = torch.arange(width)
        across = draws.lefts[:, None] + torch.where(draws.flipped[:, None], columns.flip(0), columns)
        padded = F.pad(images, (self.pad_crop,) * 4)
        return padded[
            torch.arange(samples)[:, None, None, None],
            torch.arange(channels)[:, None, None],
            down[:, None, :, None],
            across[:, None, None, :],
        ]

    def erase_(self, images: Tensor, draws: Draws) -> Tensor:
        """Erase in place from normalised images (R, C, H, W) as drawn for them; return them."""
        for row in draws.erased.nonzero()[:, 0].tolist():
            # Each sample has its own noise, so a part of a batch need not draw the noise of all of it.
            noise = torch.Generator().manual_seed(int(draws.noise_seeds[row]))
            top, left, height, width = draws.rectangles[row].tolist()
            region = images[row, :, top : top + height, left : left + width]
            region.copy_(torch.randn(region.shape, generator=noise))
        return images


def _draw_rectangles(samples: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return (B, 4): the first of some tries per sample that is smaller than the image, else an empty rectangle."""
    height, width = size
    areas, aspects, *places = torch.rand((4, samples, _TRIES), generator=generator, dtype=torch.float64)
    areas = height * width * (_AREA[0] + areas * (_AREA[1] - _AREA[0]))
    aspects = torch.exp(math.log(_ASPECT[0]) + aspects * math.log(_ASPECT[1] / _ASPECT[0]))
    heights, widths = (areas * aspects).sqrt().round(), (areas / aspects).sqrt().round()
    tops, lefts = (places[0] * (height - heights + 1)).floor(), (places[1] * (width - widths + 1)).floor()
    fits = (heights < height) & (widths < width)
    first = fits.to(torch.uint8).argmax(dim=1)
    tries = torch.stack([tops, lefts, heights, widths], dim=2).long()
    return torch.where(fits.any(dim=1)[:, None], tries[torch.arange(samples), first], 0)
