"""Append-only journals: JSON lines, each with a checksum that continues the one before.

A record is on the disk when `append` returns. A line's SHA-256 covers its record and the previous line's digest, so a
changed, lost, moved or foreign line is found. Only the last line can be torn by an interruption, and then it is no
whole line of JSON; it is cut when the journal is opened, so what is read is always a prefix of what was appended. One
process writes at a time, which the run's lock sees to.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nasx.run import files


class JournalDamaged(ValueError):
    """A line is not what was written, and is not the last one torn by an interruption."""


class Journal:
    """The records of one file, oldest first; the file is created by the first `append`.

    The checksums depend on `identity`: a journal opened under another identity than it was written with is damaged.
    With `read_only` the file stays as it is, so that it can be read while another process appends to it. Raises
    JournalDamaged with the line number.
    """

    def __init__(self, path: str | os.PathLike[str], *, identity: str = "", read_only: bool = False) -> None:
        self.path = Path(path)
        self._read_only = read_only
        self._digest = hashlib.sha256(identity.encode()).hexdigest()
        self._texts: list[bytes] = []
        self._end = 0
        self._torn = False
        self._read()

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the records there are now; each is the reader's own to change."""
        return iter([json.loads(text) for text in self._texts])

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record, durably; one that JSON cannot hold is a TypeError or ValueError.

        Raises OSError where the disk is full or fails; the journal is then as it was before. A journal that is only
        read is a ValueError.
        """
        if self._read_only:
            raise ValueError(f"{self.path} was opened to be read; open it without `read_only` to append to it")
        text = json.dumps(dict(record), allow_nan=False, separators=(",", ":")).encode()
        digest = _continued(self._digest, text)
        line = _line(digest, text)
        with files.naming_the_file(self.path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            descriptor = files.os_call(os.open, self.path, flags, 0o666)
            try:
                if not self._end:
                    files.flush_directory(self.path.parent)
                self._write(descriptor, line)
            finally:
                os.close(descriptor)
        self._digest, self._end = digest, self._end + len(line)
        self._texts.append(text)

    def _write(self, descriptor: int, line: bytes) -> None:
        size = os.fstat(descriptor).st_size
        if self._torn:
            files.os_call(os.ftruncate, descriptor, self._end)
        elif size != self._end:
            raise JournalDamaged(
                f"{self.path} has {size} bytes where this process left {self._end}: something else wrote to it"
            )
        self._torn = True
        try:
            files.write_all(descriptor, line)
            files.os_call(os.fsync, descriptor)
        except BaseException:
            with contextlib.suppress(OSError):  # else the next append or the next open cuts it
                files.os_call(os.ftruncate, descriptor, self._end)
            raise
        self._torn = False

    def _read(self) -> None:
        try:
            *whole, rest = files.read_plain(self.path).split(b"\n")
        except FileNotFoundError:
            return
        except ValueError as error:
            raise JournalDamaged(
                f"{error}: {self.path}; restore it from a copy, or start a new run directory"
            ) from error
        lines = [line + b"\n" for line in whole] + ([rest] if rest else [])
        for number, line in enumerate(lines, 1):
            text = line[len(_line(self._digest, b"")) - 2 : -2]
            digest = _continued(self._digest, text)
            if line != _line(digest, text):
                if number < len(lines) or not _is_torn(line):
                    raise JournalDamaged(
                        f"line {number} of {self.path} is not what was written; restore the file from a copy, or start "
                        f"a new run directory"
                    )
                break
            self._digest, self._end = digest, self._end + len(line)
            self._texts.append(text)
        if not self._read_only:
            self._trim(torn=self._end < sum(map(len, lines)))

    def _trim(self, torn: bool) -> None:
        """Cut what is torn and flush the rest: who wrote it may have been killed before it was on the disk."""
        with files.naming_the_file(self.path):
            descriptor = files.os_call(os.open, self.path, (os.O_WRONLY if torn else os.O_RDONLY) | os.O_NOFOLLOW)
            try:
                if torn:
                    files.os_call(os.ftruncate, descriptor, self._end)
                files.os_call(os.fsync, descriptor)
            finally:
                os.close(descriptor)


def _is_torn(line: bytes) -> bool:
    try:
        files.parse_json(line)
    except ValueError:
        return True
    return not line.endswith(b"\n")


def _continued(digest: str, text: bytes) -> str:
    return hashlib.sha256(digest.encode() + text).hexdigest()


def _line(digest: str, text: bytes) -> bytes:
    return b'{"sha256":"%s","record":%s}\n' % (digest.encode(), text)
