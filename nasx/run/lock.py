"""One writer at a time in a run directory.

The kernel decides who wins (flock on an open file) and lets go when the owner ends, however it ends. The file also
names its owner by host, process and start time: for the message, and for file systems on which hosts do not see each
other's locks. An owner on this host that is no longer alive is taken over, and so is one on another host where a free
lock means that it has ended (`nasx.run.mounts`). Elsewhere it cannot be asked, so a run that was killed there is
released by hand; an ordinary end, an interruption included, clears the name.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
from pathlib import Path
from types import TracebackType
from typing import Any

from nasx.run import files
from nasx.run.mounts import locks_reach_all_hosts

_held: set[int] = set()
logger = logging.getLogger(__name__)


class RunLocked(RuntimeError):
    """Another process writes to the run directory; the message names host and process."""


class RunLock:
    """A lock file, held from construction until `release`. Raises RunLocked where a living process holds it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with files.naming_the_file(self.path):
            # never unlinked: a second file of that name could be locked beside the first
            self._descriptor = files.os_call(os.open, self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                self._acquire()
            except BaseException:
                os.close(self._descriptor)
                raise
        _held.add(self._descriptor)

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLocked(
                f"{self.path.parent} is in use by {_described(self._owner())}; wait until it ends, or end it"
            ) from None
        owner = self._owner()
        if owner and owner["host"] != platform.node():
            if not locks_reach_all_hosts(self.path):
                raise RunLocked(
                    f"{self.path.parent} was left locked by {_described(owner)}, and this file system does not tell "
                    f"whether it still runs; if it does not, delete {self.path}"
                )
            logger.warning(
                "%s was left by %s, which has ended; it is continued here", self.path.parent, _described(owner)
            )
        elif owner and owner["pid"] != os.getpid() and _start_time(owner["pid"]) == owner["started"] is not None:
            raise RunLocked(f"{self.path.parent} is in use by {_described(owner)}; wait until it ends, or end it")
        name = {"host": platform.node(), "pid": os.getpid(), "started": _start_time(os.getpid())}
        files.os_call(os.ftruncate, self._descriptor, 0)
        files.os_call(os.pwrite, self._descriptor, json.dumps(name).encode(), 0)

    def _owner(self) -> dict[str, Any] | None:
        return _named(os.pread(self._descriptor, 10_000, 0))

    def release(self) -> None:
        """Let the next process in; a second call, or one in a forked child, does nothing."""
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            with contextlib.suppress(OSError):
                files.os_call(os.ftruncate, self._descriptor, 0)
            os.close(self._descriptor)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_held(path: Path) -> bool | None:
    """Return whether a living process holds a lock file, without touching it; None where another host's may."""
    try:
        owner = _named(path.read_bytes())
    except OSError:
        return False
    if owner is None:
        return False
    if owner["host"] != platform.node():
        return None
    return bool(_start_time(owner["pid"]) == owner["started"] is not None)


def _named(content: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, KeyError, TypeError):  # empty when released, torn when killed
        named = files.parse_json(content)
        return {"host": str(named["host"]), "pid": int(named["pid"]), "started": named["started"]}
    return None


def _described(owner: dict[str, Any] | None) -> str:
    return f"process {owner['pid']} on host {owner['host']}" if owner else "another process"


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks since boot, or None: a number is reused, the pair is not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the command in parentheses may hold anything; the start is field 22, the state field 3
    fields = status.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _release_in_child() -> None:
    # a forked worker that outlives the run must not keep it locked; closing a copy does not unlock the parent's
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
