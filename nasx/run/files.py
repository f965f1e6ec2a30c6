"""Atomic files: each appears complete or not at all.

Whoever opens a path sees the old content or the new one, whenever the writer or the machine ends: the data goes to a
temporary file in the same directory, which is flushed to the disk before it is renamed over the path (POSIX makes that
atomic), and the directory is flushed after, so that a write that returned is not lost. A failed write removes its
temporary file; those of a killed writer are hidden, have names that nothing else has, and go with `remove_leftovers`.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, ParamSpec, TypeVar

Json = Any
"""A JSON value: None, bool, finite float, int, str, and lists and string-keyed dicts of them."""

P = ParamSpec("P")
R = TypeVar("R")

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.partial", re.DOTALL)


def os_call(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call the operating system: all that this package changes on disk passes here, where tests make it fail."""
    return function(*args, **kwargs)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file's content atomically and durably.

    Raises OSError where the disk is full or fails; the file is then as it was before.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    with naming_the_file(path), removed_on_error(temporary):
        write_new(temporary, data)
        rename(temporary, path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file's content by text in UTF-8, as `write_bytes` does.

    Bytes of a file's name that are no UTF-8 are written as escapes, such as `\\udce9`.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], value: Json) -> None:
    """Replace a file's content by JSON with sorted keys, as `write_bytes` does; NaN or infinity is a ValueError."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_new(path: Path, data: bytes) -> None:
    """Create a file and flush it to the disk; not atomic. FileExistsError where there is one."""
    descriptor = os_call(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, data)
        os_call(os.fsync, descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes; the system may take fewer at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os_call(os.write, descriptor, rest) :]


def rename(source: Path, target: Path) -> None:
    """Rename within one directory, durably."""
    os_call(os.replace, source, target)
    flush_directory(target.parent)


def read_plain(path: Path) -> bytes:
    """Return a file's content; what is no plain file is a ValueError: links are not followed, pipes not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise ValueError(f"{path.name} is not a plain file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path.name} is not a plain file")
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


class DamagedFile(ValueError):
    """A file that a run wrote is missing or is not what was written."""


def read_checked(path: str | os.PathLike[str], sha256: str) -> bytes:
    """Return the content of a file that a run wrote; DamagedFile where its SHA-256 is not the one that was recorded."""
    path = Path(path)
    try:
        data = read_plain(path)
    except (FileNotFoundError, ValueError) as error:
        missing = "is missing" if isinstance(error, FileNotFoundError) else "is no plain file"
        raise DamagedFile(f"{path} {missing}; put it back from a copy, or start a new run directory") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedFile(
            f"{path} is not what was written: it was damaged or replaced; put it back from a copy, or start a new run "
            "directory"
        )
    return data


def parse_json(text: str | bytes) -> Json:
    """Return the value of a JSON text; any other, with NaN or nested too deep for the parser, is a ValueError."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_json(path: str | os.PathLike[str], mend: str) -> Json:
    """Return the value of a JSON file that a run wrote; DamagedFile names the file, what is wrong, and the `mend`."""
    path = Path(path)
    try:
        return parse_json(read_plain(path))
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged ({error}); {mend}") from error


def read_record(path: str | os.PathLike[str], mend: str, **fields: type | UnionType) -> dict[str, Json]:
    """Return the JSON object of a file that a run wrote, whose `fields` have values of these types.

    Anything else is a DamagedFile, as of `read_json`.
    """
    found = read_json(path, mend)
    if not isinstance(found, dict):
        raise DamagedFile(f"{path} is damaged (it is no JSON object); {mend}")
    for name, kind in fields.items():
        if name not in found or not isinstance(found[name], kind):
            raise DamagedFile(f"{path} is damaged ({name!r} is missing, or not what a run writes); {mend}")
    return found


def flush_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os_call(os.open, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os_call(os.fsync, descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems flush names by themselves and refuse to be asked
            raise OSError(error.errno, error.strerror, str(path)) from error  # the system's own names no file
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Create a directory and its missing parents, durably, also where a killed process had not come to flush it."""
    if not path.is_dir():
        make_directories(path.parent)
        with contextlib.suppress(FileExistsError):
            os_call(os.mkdir, path)
    with contextlib.suppress(PermissionError):  # of a parent that is another user's
        flush_directory(path.parent)


def check_space(directory: str | os.PathLike[str], needed_bytes: int) -> None:
    """Refuse, as ValueError, a directory, which need not exist yet, whose file system has not that much space free."""
    path = Path(directory).absolute()
    free = shutil.disk_usage(next(above for above in (path, *path.parents) if above.is_dir())).free
    if free < needed_bytes:
        raise ValueError(
            f"{directory} needs about {_amount(needed_bytes)}, but its file system has {_amount(free)} free; make "
            "room, or choose a directory on another one"
        )


def _amount(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**10:,.0f} KiB"


def temporary_beside(path: Path) -> Path:
    """Return an unused hidden name in a path's directory that `remove_leftovers` recognises."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def is_leftover(name: str) -> bool:
    """Whether a file name is one that only a temporary file has."""
    return LEFTOVER.fullmatch(name) is not None


def remove_leftovers(directory: Path) -> None:
    """Remove what killed writers left in a directory and below; only for whoever holds the run's lock."""
    for folder, folders, files in os.walk(directory):
        for name in filter(is_leftover, (*folders, *files)):
            with naming_the_file(leftover := Path(folder, name)):  # a folder's own error names a file inside alone
                remove(leftover)
        folders[:] = [name for name in folders if not is_leftover(name)]


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        os_call(shutil.rmtree, path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os_call(os.unlink, path)


@contextmanager
def removed_on_error(temporary: Path) -> Iterator[None]:
    """Remove a temporary file or folder if the block raises; that it cannot be removed never hides why."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            remove(temporary)
        raise


@contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Put a file's name into an OSError of the block: the system's own message for a failed write has none."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"could not write {path}: {reason}; what was saved before is still there") from error
