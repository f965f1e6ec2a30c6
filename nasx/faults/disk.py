"""A model of a disk on power loss: what was flushed is kept, and any part of what was not may be lost."""

import functools
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nasx.faults.calls import OsCall, calling
from nasx.faults.workloads import Workload
from nasx.run import (
    files,
)


@dataclass(slots=True)
class File:
    """A file's flushed bytes, and the writes since then."""

    flushed: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, data), or (length, None) for a cut

    def flush(self) -> None:
        """Make all changes so far durable."""
        self.flushed, self.pending = self.now(), []

    def now(self) -> bytes:
        """Return the content that processes read."""
        return functools.reduce(_changed, self.pending, self.flushed)

    def image(self, generator: random.Random) -> bytes:
        """Return a content that the disk may hold: some first writes, the last of them in part, perhaps as zeros."""
        content = self.flushed
        whole = generator.randint(0, len(self.pending))
        for number, (offset, data) in enumerate(self.pending[: whole + 1]):
            if data is not None:
                at = generator.randint(0, len(data))
                blank = bytes(len(data))
                data = generator.choice((data, data, blank, data[:at] + blank[at:], blank[:at] + data[at:]))
                data = data[:at] if number == whole else data
            elif number == whole:
                continue
            content = _changed(content, (offset, data))
        return content


def _changed(content: bytes, change: tuple[int, bytes | None]) -> bytes:
    offset, data = change
    return content[:offset].ljust(offset, b"\0") + (b"" if data is None else data + content[offset + len(data) :])


@dataclass(slots=True)
class Folder:
    """A folder's flushed names, and what was created, renamed and removed since then."""

    flushed: "dict[str, File | Folder]" = field(default_factory=dict)
    pending: "list[dict[str, File | Folder | None]]" = field(default_factory=list)  # each is atomic; None: removed

    @classmethod
    def read(cls, path: Path) -> "Folder":
        """Return what a real folder holds, all of it flushed."""
        return cls({e.name: cls.read(e) if e.is_dir() else File(e.read_bytes()) for e in sorted(path.iterdir())})

    def names(self, changes: "Sequence[Mapping[str, File | Folder | None]]") -> "dict[str, File | Folder]":
        """Return the content of the folder after some changes to what was flushed."""
        merged: dict[str, File | Folder | None] = {**self.flushed}
        for change in changes:
            merged |= change
        return {name: node for name, node in merged.items() if node is not None}

    def flush(self) -> None:
        """Make all changes so far durable."""
        self.flushed, self.pending = self.names(self.pending), []

    def remove_all(self) -> None:
        """Remove everything in it, name by name."""
        for name, node in self.names(self.pending).items():
            if isinstance(node, Folder):
                node.remove_all()
            self.pending.append({name: None})

    def write_image(self, path: Path, generator: random.Random | None) -> None:
        """Write what the disk may hold after a power loss; without a generator, what processes read before it."""
        likely = generator.choice((0.0, 0.5, 1.0)) if generator else 1.0
        changes = [change for change in self.pending if generator is None or generator.random() < likely]
        for name, node in self.names(changes).items():
            if isinstance(node, File):
                (path / name).write_bytes(node.image(generator) if generator else node.now())
            else:
                (path / name).mkdir()
                node.write_image(path / name, generator)


Recorded = list[tuple[OsCall, tuple[Any, ...], Any] | int]
"""Calls with arguments and result, and between them the numbers of committed units."""


def record(workload: Workload, folder: Path) -> Recorded:
    """Run a workload and return its calls."""
    calls: Recorded = []
    call = files.os_call

    def os_call(function: OsCall, *args: Any, **kwargs: Any) -> Any:
        result = call(function, *args, **kwargs)
        calls.append((function, tuple(bytes(arg) if isinstance(arg, memoryview) else arg for arg in args), result))
        return result

    with calling(os_call):
        workload.act(folder, calls.append)
    return calls


class Disk:
    """A disk on which recorded calls are replayed, below the folder `root`."""

    def __init__(self, root: Path, top: Folder) -> None:
        self.root, self.top = root, top
        self.opened: dict[int, File | Folder] = {}

    def run(self, calls: Recorded, end: int) -> int:
        """Replay the first `end` recorded calls; return how many units were committed among them."""
        committed = 0
        for entry in calls[:end]:
            if isinstance(entry, int):
                committed = entry
            else:
                self._call(*entry)
        return committed

    def _call(self, function: OsCall, args: tuple[Any, ...], result: Any) -> None:
        if function is os.open:
            self.opened[result] = self._node(args[0]) or self._change(args[0], File())
        elif function is os.mkdir:
            self._change(args[0], Folder())
        elif function is os.unlink:
            self._change(args[0], None)
        elif function is os.replace:
            source, target = args
            assert source.parent == target.parent
            self._folder(source).pending.append({source.name: None, target.name: self._node(source)})
        elif function is shutil.rmtree:
            node = self._node(args[0])
            assert isinstance(node, Folder)
            node.remove_all()
            self._change(args[0], None)
        elif function is os.fsync:
            self.opened[args[0]].flush()
        else:
            file = self.opened[args[0]]
            assert isinstance(file, File)
            assert function in (os.write, os.pwrite, os.ftruncate), f"unknown to this model: {function}"
            if function is os.ftruncate:
                file.pending.append((args[1], None))
            else:
                file.pending.append((args[2] if function is os.pwrite else len(file.now()), args[1]))

    def _change(self, path: Path, node: Any) -> Any:
        self._folder(path).pending.append({path.name: node})
        return node

    def _folder(self, path: Path) -> Folder:
        folder = self._node(path.parent)
        assert isinstance(folder, Folder)
        return folder

    def _node(self, path: Path) -> File | Folder | None:
        if path == self.root.parent:  # it is there already
            return Folder()
        node: File | Folder | None = self.top
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, Folder)
            node = node.names(node.pending).get(part)
        return node
