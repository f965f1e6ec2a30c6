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
    """What was drawn for every sample, each (B,) but for two.

    Rectangles are (B, 4): top, left, height, width. Turns are (B, 2): cosine and sine of the angle over the zoom.
    """

    tops: Tensor
    lefts: Tensor
    flipped: Tensor
    erased: Tensor
    rectangles: Tensor
    noise_seeds: Tensor
    turns: Tensor

    def take(self, rows: Tensor) -> "Draws":
        """Return the draws of some samples."""
        return Draws(*(drawn[rows] for drawn in self))


@dataclass(frozen=True, slots=True)
class Augment:
    """What happens to training images at random, each switched on by itself.

    Of any images: crop after zero padding by `pad_crop` pixels; horizontal `flip`; rotation by up to `rotate` degrees
    either way and zoom by a factor in 1 - `zoom`..1 + `zoom`, about the centre, bilinear, zeros outside; with
    probability `erase`, a rectangle of the normalised image filled with unit Gaussian noise (Zhong et al., Random
    Erasing Data Augmentation, 2020; per pixel as DeiT does).

    Of photographs read from files, before they are resized: a crop of a share of the area in `resized_crop`, such as
    (0.08, 1.0); `auto_augment` in timm's spelling, such as "rand-m9-mstd0.5-inc1"; brightness, contrast and
    saturation by up to `color_jitter`, which timm leaves out beside most of `auto_augment`.

    Raises ValueError for what is out of range.
    """

    pad_crop: int = 0
    flip: bool = False
    erase: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    resized_crop: tuple[float, float] | None = None
    auto_augment: str | None = None
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.pad_crop < 0:
            raise ValueError(f"pad_crop counts pixels and must not be negative, but got {self.pad_crop}")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"erase is a probability in 0..1, but got {self.erase}")
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"rotate is in degrees, 0..180, but got {self.rotate}")
        if not 0 <= self.zoom < 1:
            raise ValueError(f"zoom is in 0..1, exclusive of 1, but got {self.zoom}")
        if self.resized_crop and not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise ValueError(f"resized_crop is a range of shares, 0 < low <= high <= 1, but got {self.resized_crop}")
        if self.color_jitter < 0:
            raise ValueError(f"color_jitter must not be negative, but got {self.color_jitter}")

    @property
    def of_photos(self) -> bool:
        """Whether photographs are needed, for what comes before resizing."""
        return bool(self.resized_crop or self.auto_augment or self.color_jitter)

    def draw(self, samples: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw for a whole batch of images of size (H, W).

        All is drawn up to the last one that is switched on, so that switching one on leaves the others' draws alone.
        """
        tops, lefts = torch.randint(2 * self.pad_crop + 1, (2, samples), generator=generator)
        flips, erasures = torch.rand((2, samples), generator=generator)
        rectangles, noise_seeds = torch.zeros(samples, 4, dtype=torch.long), torch.zeros(samples, dtype=torch.long)
        turns = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(samples, 2)
        if self.erase or self.rotate or self.zoom:
            rectangles = _draw_rectangles(samples, size, generator)
            noise_seeds = torch.randint(2**62, (samples,), generator=generator)
        if self.rotate or self.zoom:
            angles, zooms = torch.rand((2, samples), generator=generator, dtype=torch.float64) * 2 - 1
            angles = angles * math.radians(self.rotate)
            turns = torch.stack([angles.cos(), angles.sin()], dim=1) / (1 + zooms * self.zoom)[:, None]
        return Draws(
            tops=tops,
            lefts=lefts,
            flipped=(flips < 0.5) & self.flip,
            erased=erasures < self.erase,
            rectangles=rectangles,
            noise_seeds=noise_seeds,
            turns=turns.float(),
        )

    def crop_and_flip(self, images: Tensor, draws: Draws) -> Tensor:
        """Return uint8 images (R, C, H, W), on any device, shifted and mirrored as drawn for them."""
        if not (self.pad_crop or self.flip):
            return images
        samples, channels, height, width = images.shape
        tops, lefts, flipped = (drawn.to(images.device) for drawn in (draws.tops, draws.lefts, draws.flipped))
        columns = torch.arange(width, device=images.device)
        down = tops[:, None] + torch.arange(height, device=images.device)
        across = lefts[:, None] + torch.where(flipped[:, None], columns.flip(0), columns)
        padded = F.pad(images, (self.pad_crop,) * 4)
        # gathered, which is several times as fast as indexing all four dimensions
        places = (down[:, :, None] * padded.shape[-1] + across[:, None, :]).flatten(1)
        taken = padded.flatten(2).gather(2, places[:, None].expand(samples, channels, -1))
        return taken.view_as(images)

    def rotate_and_zoom(self, images: Tensor, draws: Draws) -> Tensor:
        """Return images (R, C, H, W), turned and scaled about their centre as drawn for them; float32 where so."""
        if not (self.rotate or self.zoom):
            return images
        height, width = images.shape[-2:]
        # Pixels from the centre; element by element, because a matrix product may round by the number of rows.
        y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
        x = (torch.arange(width, device=images.device) - (width - 1) / 2)[None]
        turns = draws.turns.to(images.device)
        cosines, sines = turns[:, 0, None, None], turns[:, 1, None, None]
        from_x, from_y = cosines * x + sines * y, cosines * y - sines * x
        grid = torch.stack([from_x * (2 / width), from_y * (2 / height)], dim=-1)
        return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def erase_(self, images: Tensor, draws: Draws) -> Tensor:
        """Erase in place from normalised images (R, C, H, W), on any device, as drawn for them; return them."""
        rows = draws.erased.nonzero()[:, 0].tolist() if self.erase else []
        if not rows:
            return images
        channels = images.shape[1]
        noises = []
        for row in rows:
            # Each sample has its own noise, so a part of a batch need not draw the noise of all of it.
            generator = torch.Generator().manual_seed(int(draws.noise_seeds[row]))
            height, width = draws.rectangles[row, 2:].tolist()
            noises.append(torch.randn((channels, height, width), generator=generator))
        if images.device.type == "cpu":
            for row, noise in zip(rows, noises, strict=True):
                top, left, height, width = draws.rectangles[row].tolist()
                images[row, :, top : top + height, left : left + width] = noise
            return images
        return fill_rectangles_(images, draws, torch.cat([noise.flatten() for noise in noises]))


def fill_rectangles_(images: Tensor, draws: Draws, values: Tensor) -> Tensor:
    """Fill the drawn rectangles of images in place with values, one after the other, in one operation.

    Accelerators take that better than a copy for each rectangle.
    """
    height, width = images.shape[-2:]
    sizes = draws.rectangles * draws.erased[:, None]
    tops, lefts, heights, widths = sizes.to(images.device).unbind(1)
    down, across = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows = (down >= tops[:, None]) & (down < (tops + heights)[:, None])
    columns = (across >= lefts[:, None]) & (across < (lefts + widths)[:, None])
    inside = (rows[:, :, None] & columns[:, None, :])[:, None].expand_as(images)
    return images.masked_scatter_(inside, values.to(images.device, non_blocking=True))


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
