"""Stages: the named steps of a run, their inputs and their context."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nasx.run.files import Json
from nasx.run.signals import StopFlag

if TYPE_CHECKING:
    from nasx.run.checkpoints import Checkpoints

RUN, LOCK, JOURNAL, CHECKPOINTS = "run.json", "run.lock", "journal.jsonl", "checkpoints"
RESERVED = (RUN, LOCK, JOURNAL, CHECKPOINTS)


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run, done once.

    `name` is also its folder below the run directory ("heads/supernet"); `work` returns its result, a JSON value;
    `inputs` names the earlier stages whose results it reads.
    """

    name: str
    work: Callable[["StageContext"], Json]
    inputs: tuple[str, ...] = ()


class Records(Protocol):
    """What a stage reads and appends its records to: its journal, or a copy of it on a rank that does not write."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the records, the oldest first."""

    def __len__(self) -> int:
        """Return how many there are."""

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep a record, durably where it is the journal."""


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage's work is handed: the results it reads, a folder, a journal and checkpoints of its own.

    Work that was interrupted is called again with the same folder: what it finds in its journal and in its
    checkpoints is what it need not do again.
    """

    name: str
    inputs: Mapping[str, Json]
    directory: Path
    run_directory: Path
    journal: Records
    stop: StopFlag

    @property
    def checkpoints(self) -> "Checkpoints":
        """The stage's checkpoints; read on demand because they load torch."""
        return checkpoints_in(self.directory, self.name)

    def checkpoints_of(self, name: str) -> "Checkpoints":
        """Return the checkpoints of an input stage; any other name is a ValueError."""
        return checkpoints_in(self.stage_directory(name), name)

    def stage_directory(self, name: str) -> Path:
        """Return the folder of an input stage, to read its files; any other name is a ValueError."""
        if name not in self.inputs:
            raise ValueError(
                f"stage {self.name!r} reads only {sorted(self.inputs)}, but asked for {name!r}; add it to its inputs"
            )
        return self.run_directory / name


def checkpoints_in(directory: Path, stage: str) -> "Checkpoints":
    """Return the checkpoints in the folder of a stage."""
    from nasx.run.checkpoints import Checkpoints

    return Checkpoints(directory / CHECKPOINTS, identity=stage)


def check_stages(stages: Sequence[Stage]) -> None:
    """Refuse, as ValueError, names that are no folders, names used twice, and inputs that are no earlier stage."""
    earlier: list[str] = []
    for stage in stages:
        segments = stage.name.split("/")
        if not all(re.fullmatch(r"\w[\w.-]*", part) and part not in RESERVED for part in segments):
            raise ValueError(
                f"a stage's name is a folder: words joined by '/', none of them {', '.join(RESERVED)}, "
                f"but got {stage.name!r}"
            )
        if stage.name in earlier:
            raise ValueError(f"stage names must differ, but {stage.name!r} is used twice")
        unknown = [name for name in stage.inputs if name not in earlier]
        if unknown:
            raise ValueError(f"stage {stage.name!r} reads {unknown[0]!r}, but the stages before it are {earlier}")
        earlier.append(stage.name)
