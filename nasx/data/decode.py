"""From the bytes of a file to a photograph in 8-bit RGB, or to what is wrong with it."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from nasx.data.faults import BrokenImage, BrokenImageError

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: white, as on paper and in browsers."""


def decode(path: Path) -> Any:
    """Return the first frame of an image file as a PIL image in RGB, at its own size.

    Grey, palette and CMYK images are converted as Pillow does, without colour profiles. Transparent pixels are laid
    over white. Grey of 16 bits becomes 8 by division by 257, rounded, so that 65535 becomes 255; of 16-bit colour
    Pillow keeps the upper byte. The orientation that a camera noted is not applied. Raises BrokenImageError for a
    file that is missing, empty, damaged or of no known format, for one of more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS` (about 89 million), which none may be for memory's sake, and for pixels of no
    defined scale (floating point, or integers outside of 16 bits).
    """
    pillow = _pillow()
    try:
        with path.open("rb") as file, pillow.open(file) as image:
            width, height = image.size
            if pillow.MAX_IMAGE_PIXELS and width * height > pillow.MAX_IMAGE_PIXELS:
                raise pillow.DecompressionBombError
            image.load()
            return _rgb(image)
    except (MemoryError, ImportError):
        raise  # says nothing about the file
    except Exception as error:  # damage can surface as nearly anything in the decoders
        broken = BrokenImage(path, _fault(error, path))
        raise BrokenImageError(f"{broken}; replace or remove it", (broken,)) from error


def _rgb(image: Any) -> Any:
    pillow = _pillow()
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels are {values.min()} to {values.max()}, outside of 16 bits")
        return pillow.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined scale; store 8 or 16 bits")
    if image.has_transparency_data:
        opaque = pillow.new("RGBA", image.size, (*BACKGROUND, 255))
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _fault(error: Exception, path: Path) -> str:
    pillow = _pillow()
    if isinstance(error, pillow.DecompressionBombError | pillow.DecompressionBombWarning):
        return f"it has more than the {pillow.MAX_IMAGE_PIXELS:,} pixels that PIL.Image.MAX_IMAGE_PIXELS allows"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, import_module("PIL").UnidentifiedImageError):
        return "the content has no known image format" if path.stat().st_size else "the file is empty"
    return str(error) or type(error).__name__


def _pillow() -> Any:
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'nasx[recipes]'") from error
