"""Find the images in a folder of class folders, and record which files are skipped."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from nasx.data.broken import printable
from nasx.data.decode import pillow

ClassOrder = Literal["text", "number"]
"""How class folders are numbered: as texts, as torchvision and timm do, or by the numbers that they are called."""

_ALWAYS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
)
_IF_READABLE = (".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl")
_SHOWN = 3


@dataclass
class SkippedFiles:
    """Files that were found and are not used."""

    hidden: list[str] = field(default_factory=list)
    """Hidden files and folders."""
    of_no_class: list[str] = field(default_factory=list)
    """Images that lie beside the class folders."""
    special: list[str] = field(default_factory=list)
    """Pipes, sockets and devices."""
    unreadable: Counter[str] = field(default_factory=Counter)
    """Images of formats that the installed Pillow does not read, by extension."""
    others: Counter[str] = field(default_factory=Counter)
    """Other files, by extension."""

    def remarks(self) -> Iterator[str]:
        """Yield remarks for the user, in sentences."""
        if self.unreadable:
            found = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(self.unreadable.items()))
            mend = "install pillow-heif" if any(s in (".heic", ".heif") for s in self.unreadable) else "convert them"
            yield f"images are skipped, because the installed Pillow does not read their format: {found}; {mend}"
        if self.hidden:
            yield f"{len(self.hidden):,} hidden files and folders are skipped: {_some(self.hidden)}"
        if self.of_no_class:
            one = len(self.of_no_class) == 1
            skipped = "image in no class folder is skipped" if one else "images in no class folder are skipped"
            found, them = _some(self.of_no_class), "it" if one else "them"
            yield f"{len(self.of_no_class):,} {skipped}: {found}; move {them} into one"
        if self.special:
            yield f"{len(self.special):,} pipes, sockets or devices are skipped: {_some(self.special)}"
        if self.others:
            found = ", ".join(f"{count:,} {suffix or 'without extension'}" for suffix, count in self.others.items())
            yield f"other files are skipped: {found}"


@dataclass(frozen=True)
class ClassFolders:
    """The images of a folder of class folders."""

    directory: Path
    classes: tuple[str, ...]
    """In the order of their labels; composed letters (Unicode NFC) whatever the file system has."""
    names: list[str]
    """Relative to the parent of `directory`, with forward slashes, sorted."""
    labels: list[int]
    skipped_files: SkippedFiles


def class_folders(directory: Path) -> dict[str, Path]:
    """Return the class folders of a part by their names, in order; hidden ones are none.

    A ValueError says which are not named in UTF-8, or alike but for how letters are composed.
    """
    found: dict[str, Path] = {}
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if _is_hidden(entry.name) or not entry.is_dir():
            continue
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            name = printable(os.path.join(directory, entry.name))  # noqa: PTH118
            raise ValueError(f"the class folder {name} is not named in UTF-8; rename it") from None
        name = unicodedata.normalize("NFC", entry.name)
        if name in found:
            raise ValueError(
                f"{directory} has two class folders {name!r}, which differ only in how accents are written (Unicode "
                "NFC and NFD); merge them"
            )
        found[name] = Path(entry.path)
    return dict(sorted(found.items()))


def ordered_classes(names: list[str], order: ClassOrder) -> tuple[str, ...]:
    """Return class names in an order; a ValueError says that they are no numbers, or of which order there is none."""
    if order not in get_args(ClassOrder):
        raise ValueError(f"class_order is one of {', '.join(get_args(ClassOrder))}, but got {order!r}")
    if order == "text":
        return tuple(sorted(names))
    if wrong := [name for name in names if not name.isdecimal()]:
        raise ValueError(
            f"class_order='number' needs class folders called by numbers, but got {wrong[0]!r}; leave it out"
        )
    return tuple(sorted(names, key=lambda name: (int(name), name)))


def order_remark(classes: tuple[str, ...], order: ClassOrder) -> str | None:
    """Say which order of the classes was assumed where they are numbers and the orders differ."""
    if not all(name.isdecimal() for name in classes):
        return None
    other: ClassOrder = "number" if order == "text" else "text"
    if ordered_classes(list(classes), other) == classes:
        return None
    way = "as texts (0, 1, 10, 11, 2, ...)" if order == "text" else "as numbers (0, 1, 2, ..., 10, 11)"
    return (
        f"the class folders are numbers, and sorted {way}; where weights from elsewhere number their classes "
        f"otherwise, set class_order={other!r}"
    )


def walk_classes(directory: Path, order: ClassOrder = "text") -> ClassFolders:
    """Return the images in the class folders of a directory, at any depth.

    Hidden entries (`.ipynb_checkpoints`, macOS's `._x.png`, `__MACOSX`), pipes and devices are left out, and so are
    files that are no images by their extension. Links are followed. Raises ValueError for a link that leads back to a
    folder that it lies in, for a folder that is reached twice, for a part without class folders and for a class
    without an image.
    """
    folders = class_folders(directory)
    if not folders:
        raise ValueError(f"{directory} has no class folders; images are looked for in {directory.name}/<class>/")
    classes = ordered_classes(list(folders), order)
    walk = _Walk(directory)
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        walk.skip_beside_classes(entry)
    members: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        before = len(members)
        members += [(path, label) for path in walk.images(folders[name])]
        if len(members) == before:
            suffixes = ", ".join(readable_suffixes())
            raise ValueError(f"the class folder {folders[name]} holds no image ({suffixes}); fill or remove it")
    cut = len(str(directory)) + 1  # strings, because a million paths take their time
    found = sorted((f"{directory.name}/{path[cut:].replace(os.sep, '/')}", label) for path, label in members)
    return ClassFolders(
        directory, classes, [name for name, _ in found], [label for _, label in found], walk.skipped_files
    )


def walk_images(directory: Path) -> tuple[list[Path], SkippedFiles]:
    """Return the images below a directory, at any depth and sorted by name, and what was left out.

    What counts as an image, and which errors there are, is as for `walk_classes`.
    """
    root = directory.resolve()
    walk = _Walk(root.parent)
    found = sorted(walk.images(root))
    return [directory / Path(path).relative_to(root) for path in found], walk.skipped_files


def readable_suffixes() -> tuple[str, ...]:
    """Return the extensions of images that the installed Pillow reads."""
    known = pillow().registered_extensions()
    return (*_ALWAYS, *(suffix for suffix in _IF_READABLE if suffix in known))


class _Walk:
    def __init__(self, directory: Path) -> None:
        self.skipped_files = SkippedFiles()
        self._readable = frozenset(readable_suffixes())
        self._reached = {_identity(directory): str(directory)}

    def images(self, folder: Path) -> Iterator[str]:
        yield from self._below(str(folder), (_identity(folder.parent),))

    def skip_beside_classes(self, entry: "os.DirEntry[str]") -> None:
        """Note what lies beside the class folders and is none."""
        if _is_hidden(entry.name):
            self.skipped_files.hidden.append(entry.name)
        elif not entry.is_dir() and self._is_image(entry):
            self.skipped_files.of_no_class.append(entry.name)

    def _below(self, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        own = _identity(folder)
        if own in above:
            raise ValueError(
                f"{printable(folder)} is a link that leads back to {printable(self._reached[own])}, which it lies in; "
                "remove it"
            )
        if own in self._reached:
            raise ValueError(
                f"{printable(folder)} and {printable(self._reached[own])} are one folder, reached through a link, so "
                "its images would come twice; remove the link"
            )
        self._reached[own] = folder
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            if _is_hidden(entry.name):
                self.skipped_files.hidden.append(entry.name)
            elif entry.is_dir():
                yield from self._below(entry.path, (*above, own))
            elif self._is_image(entry):
                yield entry.path

    def _is_image(self, entry: "os.DirEntry[str]") -> bool:
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
        if suffix in self._readable:
            # A link that leads nowhere is an image that is missing, which must be reported, and no special file.
            if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):  # noqa: PTH110
                return True
            self.skipped_files.special.append(entry.name)
        elif suffix in _IF_READABLE:
            self.skipped_files.unreadable[suffix] += 1
        else:
            self.skipped_files.others[suffix] += 1
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _some(names: list[str]) -> str:
    return ", ".join(map(printable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
