"""From an image file to a network's input: the same steps as in the evaluation of a run, and as code to copy."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nasx.data import decode
from nasx.data.decode import Channels, to_photo
from nasx.data.photos import fit_photo, resized_side


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How images become inputs: the shorter side resized (bicubic), the centre cropped, scaled to 0..1, normalised."""

    image_size: int
    """Pixels along a side of the input."""
    channels: int
    """1 for grey images, 3 for RGB."""
    mean: tuple[float, ...]
    """Mean of each channel, of images in 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, of images in 0..1."""

    @property
    def resized_side(self) -> int:
        """Pixels of the shorter side before the centre is cropped."""
        return resized_side(self.image_size)

    @property
    def crop_pct(self) -> float:
        """The side of the crop as a share of the resized shorter side, as timm's settings call it."""
        return self.image_size / self.resized_side

    def __call__(self, image: Any) -> Tensor:
        """Return an image as float32 (C, H, W).

        `image` is a path, a PIL image, or a uint8 array (H, W) or (H, W, C). Raises BrokenImageError for a file that
        is no image, and ValueError for an array of another kind.
        """
        return self.normalise(torch.from_numpy(fit_photo(self._photo(image), self.image_size)))

    def batch(self, images: Sequence[Any]) -> Tensor:
        """Return several images as float32 (B, C, H, W)."""
        return torch.stack([self(image) for image in images])

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels (..., C, H, W) as normalised float32."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def _photo(self, image: Any) -> Any:
        channels: Channels = 1 if self.channels == 1 else 3
        if isinstance(image, str | PathLike):
            return decode(Path(image), channels)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3):
                raise ValueError(
                    f"an array of pixels is uint8 (H, W) or (H, W, C), but got {image.dtype} {image.shape}; pass a "
                    "file or a PIL image for anything else"
                )
            from PIL import Image

            image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        if not hasattr(image, "convert"):
            raise ValueError(f"an image is a path, a PIL image or a uint8 array, but got {type(image).__name__}")
        return to_photo(image, channels)

    def as_code(self) -> str:
        """Return the same steps as Python functions that need Pillow and numpy alone, the last `preprocess(path)`.

        It returns float32 (1, C, H, W). Files are read as `decode` reads them, but broken ones and pixels of no defined
        scale are not refused.
        """
        side, size = self.resized_side, self.image_size
        grey = self.channels == 1
        axes = "[None, None]" if grey else ".transpose(2, 0, 1)[None]"
        mean, std = ((repr(v[0]) if grey else f"np.float32({list(v)!r})") for v in (self.mean, self.std))
        return f"""\
import numpy as np
from PIL import Image

MEAN, STD = {mean}, {std}


{reading_code(self.channels)}

def preprocess(path):
    image = read(path)
    width, height = ({side} * pixels // min(image.size) for pixels in image.size)  # the shorter side becomes {side}
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - {size}) / 2), round((height - {size}) / 2)
    image = image.crop((left, top, left + {size}, top + {size}))
    pixels = np.asarray(image, np.float32) / 255
    return np.float32((pixels - MEAN) / STD){axes}
"""


def reading_code(channels: int) -> str:
    """Return `decode` as a Python function `read(path)`, which needs `np` and Pillow's `Image`."""
    grey = '.convert("L")' if channels == 1 else ""
    return f"""\
def read(path):
    image = Image.open(path)
    image.load()
    if image.mode.startswith("I"):  # grey of 16 bits
        image = Image.fromarray(((np.asarray(image).astype(int) + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB"){grey}
"""
