"""Run directories that any interruption leaves resumable; `nasx.run.checkpoints`, which needs torch, is apart."""

from nasx.run.directory import ConfigChanged, RunDirectory
from nasx.run.files import Json, check_space, write_bytes, write_json, write_text
from nasx.run.journal import Journal, JournalDamaged
from nasx.run.lock import RunLock, RunLocked
from nasx.run.signals import Interrupted, StopFlag
from nasx.run.stages import Stage, StageContext

__all__ = [
    "ConfigChanged",
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
    "write_bytes",
    "write_json",
    "write_text",
]
