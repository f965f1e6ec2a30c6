"""A first look at image files: sizes, headers and ends, without decoding what is between.

It finds what would end a run late: files that are empty, no images, truncated or beyond all measure. And it gives each
content a key, so that another content under the same name is noticed and copies are found. Of every file only the first
and the last 4 KiB are read, so a key covers files of up to 8 KiB whole; a change in the middle of a larger one that
keeps its size is not seen.

Truncation is recognised by the end that a format prescribes: JPEG, PNG, GIF, and the sizes that WebP and BMP note. A
file that seems truncated is decoded to make sure. TIFF, PPM, AVIF and HEIC have no such end: there a truncated file is
found when it is decoded.
"""

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasx.data.broken import BrokenImage, BrokenImageError
from nasx.data.dataset import Indices
from nasx.data.decode import decode_content, fault_of, is_grey, pillow, refuse_sizes
from nasx.data.sources import FileEnds, Source

_KEY = 32  # bytes
_CHUNK = 256
_THREADS = 16  # they wait for the disk, outside of Python's global lock


@dataclass(frozen=True, slots=True)
class Headers:
    """What a first look tells of n images."""

    sizes: NDArray[np.int64]
    """Bytes, (n,)."""
    keys: NDArray[np.uint8]
    """SHA-256 of both ends, (n, 32)."""
    shapes: NDArray[np.int64]
    """Width and height in pixels, (n, 2), 0 where they are not known."""
    grey: NDArray[np.bool_]
    """Whether an image has no colours, (n,)."""
    faults: dict[int, BrokenImage]
    """The broken ones, by position."""

    def take(self, indices: Indices) -> "Headers":
        """Return the same of the images at these positions."""
        place = {int(index): i for i, index in enumerate(indices)} if self.faults else {}
        faults = {place[index]: fault for index, fault in self.faults.items() if index in place}
        return Headers(self.sizes[indices], self.keys[indices], self.shapes[indices], self.grey[indices], faults)

    def digest(self) -> str:
        """Return the SHA-256 of all sizes and keys, in order."""
        found = hashlib.sha256(self.sizes.astype("<i8").tobytes())
        found.update(self.keys.tobytes())
        return found.hexdigest()

    def content_key(self, index: int) -> bytes | None:
        """Return what contents must have in common to be alike; None for an empty file, which is like no other."""
        size = int(self.sizes[index])
        return size.to_bytes(8, "little") + self.keys[index].tobytes() if size else None


def look_at(source: Source, shorter_side: int | None = None, on_look: Callable[[], object] = lambda: None) -> Headers:
    """Look at the headers of images, of which the shorter side is to be resized; `on_look` follows each."""
    count = len(source)
    headers = Headers(
        sizes=np.zeros(count, np.int64),
        keys=np.zeros((count, _KEY), np.uint8),
        shapes=np.zeros((count, 2), np.int64),
        grey=np.zeros(count, bool),
        faults={},
    )

    def of_chunk(first: int) -> list[str]:
        return [_look(source, index, shorter_side, headers) for index in range(first, min(first + _CHUNK, count))]

    with ThreadPoolExecutor(_THREADS) as pool:
        results: Any = pool.map(of_chunk, range(0, count, _CHUNK))
        with closing(results):  # which cancels the rest when interrupted
            for index, fault in enumerate(chain.from_iterable(results)):
                if fault:
                    headers.faults[index] = BrokenImage(source.path(index), fault)
                on_look()
    return headers


def _look(source: Source, index: int, shorter_side: int | None, headers: Headers) -> str:
    """Note what the header of an image says, and return what is wrong with it; "" for nothing."""
    try:
        ends = source.ends(index)
    except (OSError, ValueError) as error:
        return fault_of(error)
    headers.sizes[index] = ends.size
    headers.keys[index] = np.frombuffer(hashlib.sha256(ends.head + ends.tail).digest(), np.uint8)
    if not ends.size:
        return "the file is empty"
    try:
        image = _opened(source, index, ends)
        headers.shapes[index] = image.size
        headers.grey[index] = is_grey(image.mode)
        refuse_sizes(image.size, shorter_side)
        if _seems_truncated(image.format, ends):
            decode_content(source.content(index), source.path(index))
    except BrokenImageError as error:
        return error.broken[0].fault
    except (MemoryError, ImportError):
        raise  # says nothing about the file
    except Exception as error:  # damage can surface as nearly anything in the parsers
        return fault_of(error)
    return ""


def _opened(source: Source, index: int, ends: FileEnds) -> Any:
    """Return an image with only its header read."""
    try:
        return pillow().open(io.BytesIO(ends.head))
    except Exception:
        if not ends.tail:  # that was all of it
            raise
    return pillow().open(io.BytesIO(source.content(index)))  # a header longer than 4 KiB, as with a colour profile


def _seems_truncated(kind: str | None, ends: FileEnds) -> bool:
    match kind:
        case "JPEG" | "MPO":
            return b"\xff\xd9" not in ends.last
        case "PNG":
            return b"IEND" not in ends.last
        case "GIF":
            return not ends.last.rstrip(b"\0").endswith(b";")
        case "WEBP":
            return int.from_bytes(ends.head[4:8], "little") + 8 > ends.size
        case "BMP":
            return int.from_bytes(ends.head[2:6], "little") > ends.size
        case _:
            return False
