"""Copies of test images among those that networks are fitted to or chosen on, found without opening the test set.

Only exact copies are found: a picture that was resized, cropped or coded again is another one.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

Leaks = Literal["refuse", "drop", "allow"]
"""What is done about copies of test images: refuse the data, leave the copies out, or do not look for any."""

_TAIL = 4096
_CHUNK = 1024


def copied_files(root: Path, names: Sequence[str], test: Sequence[str]) -> dict[int, int]:
    """Return which files hold the same bytes as a test file: position in `names` -> first position in `test`.

    Both name files under `root`. Sizes are compared first, then the last 4 KiB of files whose sizes collide, then all
    bytes of those that collide again; nothing is decoded. A file that is empty or cannot be read is no copy.
    """
    ours: Sequence[int] = range(len(names))
    theirs: Sequence[int] = range(len(test))
    our_keys: dict[int, object] = {}
    their_keys: dict[int, object] = {}
    for key in (_size, _tail, _content):
        our_keys, their_keys = _keys(key, root, names, ours), _keys(key, root, test, theirs)
        common = set(our_keys.values()) & set(their_keys.values()) - {None}
        ours, theirs = ([i for i, found in keys.items() if found in common] for keys in (our_keys, their_keys))
    first = {their_keys[i]: i for i in reversed(theirs)}
    return {i: first[our_keys[i]] for i in ours}


def copied_arrays(pixels: NDArray[Any], test: NDArray[Any]) -> list[int]:
    """Return the positions of those images (n, ...) that are one of the test images (m, ...), pixel by pixel."""
    known = {hashlib.sha256(image.tobytes()).digest() for image in test}
    return [i for i, image in enumerate(pixels) if hashlib.sha256(image.tobytes()).digest() in known]


def _keys(
    key: Callable[[Path], object], root: Path, names: Sequence[str], positions: Sequence[int]
) -> dict[int, object]:
    def of_chunk(first: int) -> list[object]:
        return [_readable(key, root / names[i]) for i in positions[first : first + _CHUNK]]

    with ThreadPoolExecutor() as pool:  # the disk is waited for, outside of Python's global lock
        found = chain.from_iterable(pool.map(of_chunk, range(0, len(positions), _CHUNK)))
        return dict(zip(positions, found, strict=True))


def _readable(key: Callable[[Path], object], path: Path) -> object:
    try:
        return key(path)
    except OSError:
        return None


def _size(path: Path) -> int | None:
    return path.stat().st_size or None


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read()


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
