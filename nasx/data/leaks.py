"""Copies of test images among those that networks are fitted to or chosen on, found without decoding the test set.

Only exact copies are found: a picture that was resized, cropped or coded again is another one.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from nasx.data.headers import Headers, look_at
from nasx.data.sources import END, Files, Source

Leaks = Literal["refuse", "drop", "allow"]
"""What is done about copies of test images: refuse the data, leave the copies out, or do not look for any."""

Seen = tuple[Source, Headers]
"""Images, and what their headers say."""


def copied_files(root: Path, names: Sequence[str], test: Sequence[str]) -> dict[int, int]:
    """Return which files hold the same bytes as a test file: position in `names` -> first position in `test`.

    Both name files under `root`. Sizes and both ends are compared first, then all bytes of files that agree in them;
    nothing is decoded. A file that is empty or cannot be read is no copy.
    """
    ours, theirs = (Files(root / name for name in listed) for listed in (names, test))
    return find_copies((ours, look_at(ours)), (theirs, look_at(theirs)))


def find_copies(ours: Seen, theirs: Seen) -> dict[int, int]:
    """Return which images have the bytes of another part's: position in the first -> first position in the second."""
    known: dict[object, int] = {}
    for index in reversed(range(len(theirs[0]))):
        known[theirs[1].content_key(index)] = index
    known.pop(None, None)
    suspects = [i for i in range(len(ours[0])) if ours[1].content_key(i) in known]
    if not suspects:
        return {}
    wanted = {ours[1].content_key(i) for i in suspects}
    contents: dict[object, int] = {}
    for index in reversed(range(len(theirs[0]))):
        if theirs[1].content_key(index) in wanted and (content := _content(*theirs, index)):
            contents[content] = index
    found = {i: contents.get(_content(*ours, i)) for i in suspects}
    return {i: index for i, index in found.items() if index is not None}


def copied_arrays(pixels: NDArray[Any], test: NDArray[Any]) -> list[int]:
    """Return the positions of those images (n, ...) that are one of the test images (m, ...), pixel by pixel."""
    known = {hashlib.sha256(image.tobytes()).digest() for image in test}
    return [i for i, image in enumerate(pixels) if hashlib.sha256(image.tobytes()).digest() in known]


def _content(source: Source, headers: Headers, index: int) -> object:
    """Return what identical contents have in common, all bytes considered; None where they cannot be read."""
    if headers.sizes[index] <= 2 * END:  # both ends are all of it
        return headers.content_key(index)
    try:
        return int(headers.sizes[index]), hashlib.sha256(source.content(index)).digest()
    except (OSError, ValueError):
        return None
