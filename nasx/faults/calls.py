"""Replacements for `nasx.run.files.os_call`, through which every call goes that changes the disk."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

from nasx.run import (
    files,
)

OsCall = Callable[..., Any]


def at_call(n: int, inject: Callable[[Path | None], None], stays: bool = False) -> OsCall:
    """Inject a fault at the n-th call, half way through a write or a removal; if it stays, at all later writes too."""
    calls = 0

    def os_call(function: OsCall, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == n or (stays and calls > n and function in (os.write, os.pwrite, os.mkdir)):
            if function is os.write:
                os.write(args[0], args[1][: len(args[1]) // 2])
            elif function is shutil.rmtree:
                next(path for path in args[0].iterdir() if path.is_file()).unlink()
            inject(args[0] if isinstance(args[0], Path) else None)
        return without_flushing(function, *args, **kwargs)

    return os_call


def without_flushing(function: OsCall, *args: Any, **kwargs: Any) -> Any:
    """Skip fsync, which takes most of the time, where only a power loss could lose something."""
    return None if function is os.fsync else function(*args, **kwargs)


def calling(os_call: OsCall) -> AbstractContextManager[object]:
    """Replace `os_call` for the length of a block."""
    return mock.patch.object(files, "os_call", os_call)
