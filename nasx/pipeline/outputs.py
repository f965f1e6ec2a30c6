"""Where commands may write their files: not over those of a run, and under a name that says what they are."""

import os
from collections.abc import Sequence
from pathlib import Path

from nasx.run.stages import RUN


def keep_runs(directory: Path, option: str) -> None:
    """Refuse, as FileExistsError, to write into a run directory; `option` is what chooses another."""
    if (directory / RUN).exists():
        raise FileExistsError(f"{directory} is a run directory, whose files must stay; choose another {option}")


def check_output(path: Path, option: str, endings: Sequence[str]) -> None:
    """Refuse a file that cannot be written, or must not be, before the work that it is to hold; nothing is written.

    A ValueError names another ending, or a folder that is missing; an OSError a folder that cannot be written to, a
    folder in the file's place, and any place inside a run directory.
    """
    if path.suffix.lower() not in endings:
        raise ValueError(f"{option} must end in {' or '.join(endings)}, but got {path}; rename it")
    if path.is_dir():
        raise IsADirectoryError(f"{option} names a file to write, but {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for {option} {path}; make it first")
    for folder in path.parent.resolve().parents:
        keep_runs(folder, option)
    keep_runs(path.parent, option)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written to; choose another {option}")
