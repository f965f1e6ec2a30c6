"""From the bytes of a file to a photograph of 8 bits, or to what is wrong with it."""

import io
import os
import stat
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nasx.data.broken import BrokenImage, BrokenImageError

Channels = Literal[1, 3]
"""Grey, or red, green and blue."""

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: white, as on paper and in browsers."""

_GREY = ("1", "L", "LA", "La", "I", "F")  # and I;16 in its byte orders


def decode(path: Path, channels: Channels = 3) -> Any:
    """Return the first frame of an image file as a PIL image in RGB, or grey (L), at its own size.

    Grey, palette and CMYK images are converted as Pillow does, without colour profiles. Transparent pixels are laid
    over white. Grey of 16 bits becomes 8 by division by 257, rounded, so that 65535 becomes 255; of 16-bit colour
    Pillow keeps the upper byte. The orientation that a camera noted is not applied. Raises BrokenImageError for a
    file that is missing, empty, damaged, no regular file or of no known format, for one of more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS` (about 89 million), which none may be for memory's sake, and for pixels of no
    defined scale (floating point, or integers outside of 16 bits).
    """
    try:
        content = read_regular(path)
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error
    return decode_content(content, path, channels)


def decode_content(content: bytes, path: Path, channels: Channels = 3) -> Any:
    """Return what `decode` does, of the content of a file; `path` names it."""
    try:
        with pillow().open(io.BytesIO(content)) as image:
            refuse_sizes(image.size)
            image.load()
            return to_photo(image, channels)
    except (MemoryError, ImportError):
        raise  # says nothing about the file
    except Exception as error:  # damage can surface as nearly anything in the decoders
        raise _broken(path, error, empty=not content) from error


def to_photo(image: Any, channels: Channels = 3) -> Any:
    """Return a PIL image of any mode in RGB, or grey (L), as `decode` converts files; ValueError says why it cannot."""
    return _grey(image) if channels == 1 else _rgb(image)


def read_regular(path: Path) -> bytes:
    """Return a file's content; a ValueError says that it is no regular file, and nothing waits for a pipe."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        return file.read()


def is_grey(mode: str) -> bool:
    """Whether images of a mode of Pillow's have no colours."""
    return mode in _GREY or mode.startswith("I;16")


def refuse_sizes(size: tuple[int, int], image_size: int | None = None) -> None:
    """Raise ValueError for an image of too many pixels, or of too many once its shorter side is `image_size`."""
    width, height = size
    limit = pillow().MAX_IMAGE_PIXELS
    if not limit:
        return
    if width * height > limit:
        raise ValueError(f"it has more than the {limit:,} pixels that PIL.Image.MAX_IMAGE_PIXELS allows")
    if image_size and max(size) * image_size * image_size > limit * min(size):
        raise ValueError(
            f"it is {width:,} x {height:,} pixels: with its shorter side resized to {image_size}, it would have more "
            f"than the {limit:,} that PIL.Image.MAX_IMAGE_PIXELS allows"
        )


def fault_of(error: Exception, *, empty: bool = False) -> str:
    """Return in a few words what is wrong with an image that gave an error."""
    image = pillow()
    if isinstance(error, image.DecompressionBombError | image.DecompressionBombWarning):
        return f"it has more than the {image.MAX_IMAGE_PIXELS:,} pixels that PIL.Image.MAX_IMAGE_PIXELS allows"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, import_module("PIL").UnidentifiedImageError):
        return "the file is empty" if empty else "the content has no known image format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@lru_cache(maxsize=1)
def pillow() -> Any:
    """Return the module `PIL.Image`, which reads HEIC too where pillow-heif is installed."""
    try:
        image = import_module("PIL.Image")
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'nasx[recipes]'") from error
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    image.init()
    return image


def _broken(path: Path, error: Exception, *, empty: bool = False) -> BrokenImageError:
    broken = BrokenImage(path, fault_of(error, empty=empty))
    return BrokenImageError(f"{broken}; replace or remove it", (broken,))


def _rgb(image: Any) -> Any:
    if image.mode.startswith("I"):
        return _from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined scale; store 8 or 16 bits")
    if image.has_transparency_data:
        opaque = pillow().new("RGBA", image.size, (*BACKGROUND, 255))
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _grey(image: Any) -> Any:
    return _from_16_bits(image) if image.mode.startswith("I") else _rgb(image).convert("L")


def _from_16_bits(image: Any) -> Any:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels are {values.min()} to {values.max()}, outside of 16 bits")
    return pillow().fromarray(((values + 128) // 257).astype(np.uint8))
