"""Images that cannot be read: what is wrong with them, and how many of them training may skip."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

TOLERATED = 0.001
"""The share of broken training images above which a run stops."""

_EXAMPLES = 3
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class BrokenImage:
    """A file that gives no image, and why; as text, both in one line."""

    path: Path
    fault: str

    def __str__(self) -> str:
        return f"{printable(self.path)} cannot be read as an image: {self.fault}"


def printable(path: object) -> str:
    """Return a path, or a name, as text of one line that any terminal and file takes.

    Bytes that are no UTF-8, ends of lines, other control characters, and marks that turn the direction of writing are
    written as escapes.
    """
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class BrokenImageError(ValueError):
    """Images cannot be read and nothing may take their place; `broken` holds what is known of them."""

    def __init__(self, message: str, broken: tuple[BrokenImage, ...] = ()) -> None:
        super().__init__(message)
        self.broken = broken


class BrokenImageWarning(UserWarning):
    """A training image cannot be read; another of its class takes its place."""


class TrainingImages(Protocol):
    """A set of images with what is known of the broken ones among them, by position."""

    broken: dict[int, BrokenImage]

    def __len__(self) -> int:
        """Return the number of images."""


def refuse_broken(faults: Mapping[int, BrokenImage]) -> None:
    """Raise a BrokenImageError that names these images, if there are any."""
    if faults:
        broken = tuple(faults.values())
        more = f" ({_named(broken)})" if len(broken) > 1 else ""
        raise BrokenImageError(
            f"{broken[0]}; replace or remove it; only of training images a few may be passed over{more}", broken
        )


def note_broken(images: TrainingImages, faults: Mapping[int, BrokenImage]) -> None:
    """Record broken training images, with a BrokenImageWarning for each that is new.

    Raises BrokenImageError once more than 0.1 % of all are broken.
    """
    new = {index: broken for index, broken in faults.items() if index not in images.broken}
    images.broken.update(new)
    if new and len(images.broken) > TOLERATED * len(images):
        broken = tuple(images.broken.values())
        raise BrokenImageError(
            f"{len(broken):,} of {len(images):,} training images cannot be read, more than {TOLERATED:.1%}: "
            f"{_named(broken)}; replace or remove them",
            broken,
        )
    for image in new.values():
        warnings.warn(f"{image}; another image of its class takes its place", BrokenImageWarning, stacklevel=2)


def _named(broken: tuple[BrokenImage, ...]) -> str:
    more = f" and {len(broken) - _EXAMPLES:,} more" if len(broken) > _EXAMPLES else ""
    return "; ".join(str(image) for image in broken[:_EXAMPLES]) + more
