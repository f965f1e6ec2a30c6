"""Run directories that any interruption leaves resumable; `nasx.run.checkpoints`, which needs torch, is apart.

They need the file locks and atomic renames of POSIX: Linux and macOS.
"""

import sys

if sys.platform == "win32":
    raise ImportError("runs need the file locks and atomic renames of Linux or macOS; on Windows, use WSL")

from nasx.run.directory import ConfigChanged, RunDirectory
from nasx.run.files import DamagedFile, Json, check_space, read_checked, write_bytes, write_json, write_text
from nasx.run.journal import Journal, JournalDamaged
from nasx.run.lock import RunLock, RunLocked
from nasx.run.signals import Interrupted, StopFlag
from nasx.run.stages import Stage, StageContext

__all__ = [
    "ConfigChanged",
    "DamagedFile",
    "Interrupted",
    "Journal",
    "JournalDamaged",
    "Json",
    "RunDirectory",
    "RunLock",
    "RunLocked",
    "Stage",
    "StageContext",
    "StopFlag",
    "check_space",
    "read_checked",
    "write_bytes",
    "write_json",
    "write_text",
]
