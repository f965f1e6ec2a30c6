"""Where images lie: files by path, or something else that has contents by number."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from nasx.data.dataset import Indices
from nasx.data.decode import read_regular

END = 4096
"""Bytes at either end of a file, which identify its content."""


class FileEnds(NamedTuple):
    """The size of a content in bytes, its first 4 KiB, and its last 4 KiB where it is larger than that."""

    size: int
    head: bytes
    tail: bytes

    @property
    def last(self) -> bytes:
        """The last bytes, however large the content is."""
        return self.tail or self.head

    @property
    def whole(self) -> bool:
        """Whether the ends are all of the content."""
        return self.size <= len(self.head) + len(self.tail)


class Source(Protocol):
    """Contents of image files by number, for a set of images. It can be sent to worker processes."""

    def __len__(self) -> int:
        """Return the number of images."""

    def path(self, index: int) -> Path:
        """Return what messages call an image: its file, or a name inside of one."""

    def content(self, index: int) -> bytes:
        """Return the content of an image's file; OSError or ValueError where it cannot be read."""

    def ends(self, index: int) -> FileEnds:
        """Return both ends of that content."""

    def take(self, indices: Indices | Sequence[int]) -> "Source":
        """Return the images at these positions as a source of their own."""


class Files:
    """Image files by path."""

    def __init__(self, paths: Iterable[Path | str]) -> None:
        # One buffer instead of a million objects, which each worker process would copy as it counts references.
        encoded = [os.fsencode(path) for path in paths]
        self._paths = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _encoded(self, index: int) -> bytes:
        index = range(len(self))[index]
        return self._paths[self._ends[index] : self._ends[index + 1]]

    def path(self, index: int) -> Path:
        """Return the file at this position."""
        return Path(os.fsdecode(self._encoded(index)))

    def content(self, index: int) -> bytes:
        """Return the content of the file at this position; a ValueError says that it is no regular file."""
        return read_regular(self.path(index))

    def ends(self, index: int) -> FileEnds:
        """Return both ends of that content, without reading what is between them."""
        return ends_of_file(self._encoded(index))

    def take(self, indices: Indices | Sequence[int]) -> "Files":
        """Return the files at these positions."""
        return Files(os.fsdecode(self._encoded(int(index))) for index in indices)


def ends_of_file(path: bytes) -> FileEnds:
    """Return both ends of a file, of a pipe or a device none; nothing waits."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        size = os.fstat(descriptor).st_size  # 0 for what is no regular file
        head = os.pread(descriptor, END, 0) if size else b""
        tail = os.pread(descriptor, END, max(END, size - END)) if size > END else b""
    finally:
        os.close(descriptor)
    return FileEnds(size, head, tail)


def ends_of_bytes(content: bytes) -> FileEnds:
    """Return both ends of a content that is in memory."""
    size = len(content)
    return FileEnds(size, content[:END], content[max(END, size - END) :] if size > END else b"")
