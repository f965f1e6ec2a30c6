"""The run directory: each stage is completed once, in spite of interruptions.

`run.json` holds what was asked for, when, and with which versions, `journal.jsonl` the results of finished stages,
and each stage has a folder. A stage is finished when its result is in the journal, which happens in one durable append
after its work returned; until then it is started again, with whatever it had saved itself. So a result is computed at
least once and kept exactly once. Results are read back from the journal even in the process that computed them, which
makes a continued run and an uninterrupted one the same.
"""

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from nasx._nested import differences, short_json
from nasx.arch import matches
from nasx.run import files
from nasx.run.files import Json
from nasx.run.journal import Journal
from nasx.run.lock import RunLock
from nasx.run.signals import StopFlag
from nasx.run.stages import JOURNAL, LOCK, RUN, Stage, StageContext, check_stages

LOST = "restore it from a copy, or start a new run directory"
"""What to do about a file of a run that nothing can write again."""

logger = logging.getLogger(__name__)


class ConfigChanged(ValueError):
    """A run is continued with another config than it was started with; the message lists the differing fields.

    `fields` has the old and the new value of each by its dotted name.
    """

    def __init__(self, message: str, fields: Mapping[str, tuple[Json, Json]] | None = None) -> None:
        super().__init__(message)
        self.fields = dict(fields or {})


class RunDirectory:
    """A run that this process alone writes to, until `close` or the end of its `with` block; or one that it reads."""

    def __init__(self, path: Path, lock: RunLock | None, journal: Journal) -> None:
        self.path = path
        self._lock = lock
        self._journal = journal

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        config: Json,
        versions: Mapping[str, str],
        changeable: Collection[str] = (),
    ) -> "RunDirectory":
        """Start a run in a new or empty directory, or continue the one there.

        `changeable` names dotted fields of the config, `*` for one segment, that may differ from the start's, with
        all below them. Raises ConfigChanged; RunLocked where another process writes to the run; ValueError where the
        directory holds anything else; JournalDamaged.
        """
        path = Path(path)
        _check_name(path)
        if path.exists() and not path.is_dir():
            raise ValueError(f"a run directory must be a directory, but {path} is a file; choose another path")
        config = json.loads(json.dumps(config, allow_nan=False))
        try:
            files.make_directories(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            raise ValueError(
                f"the run directory {path} cannot be made ({error.strerror}); choose another path"
            ) from error
        _check_is_run(path)
        lock = RunLock(path / LOCK)
        try:
            _check_is_run(path)  # again, now that nobody else starts one there
            files.remove_leftovers(path)
            run = cls(path, lock, Journal(path / JOURNAL))
            run._describe({"config": config, "versions": dict(versions)}, changeable)
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, config: Json) -> "RunDirectory | None":
        """Open a run whose stages are finished to read their results: without a lock, and nothing is written.

        Returns None where there is no run that was started with this config. Raises DamagedFile and JournalDamaged.
        """
        path = Path(path)
        if not (path / RUN).is_file():
            return None
        found = files.read_record(path / RUN, LOST, config=object)
        asked = json.loads(json.dumps(config, allow_nan=False))
        if differences(found["config"], asked):
            return None
        return cls(path, None, Journal(path / JOURNAL, read_only=True))

    def _describe(self, asked: dict[str, Json], changeable: Collection[str]) -> None:
        if not (self.path / RUN).exists():
            started = datetime.now(UTC).isoformat(timespec="seconds")
            files.write_json(self.path / RUN, {**asked, "started": started})
            return
        found = files.read_record(self.path / RUN, LOST, config=object, versions=dict)
        config = differences(found.get("config"), asked["config"])
        refused = {field: change for field, change in config.items() if not _is_changeable(field, changeable)}
        if refused:
            changes = "; ".join(
                f"{field}: {short_json(old)} -> {short_json(new)}" for field, (old, new) in refused.items()
            )
            raise ConfigChanged(
                f"the run in {self.path} was started with another config: {changes}; "
                f"continue with the same config, or choose another run directory",
                refused,
            )
        versions = differences(found.get("versions"), asked["versions"])
        if versions:
            changes = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in versions.items())
            logger.warning("the run in %s continues with other versions (%s); results can differ", self.path, changes)
        if config or versions:
            self._journal.append({"event": "changed", "config": config, "versions": versions})
            files.write_json(self.path / RUN, {**found, **asked})

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds that each finished stage took, over all its attempts but those that were killed."""
        return {name: done["seconds"] for name, done in self._finished().items()}

    def note(self, event: str, facts: Mapping[str, Json]) -> None:
        """Add what happened to the run's journal, durably, with the time; the run itself does not read it back."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._journal.append({**facts, "event": event, "at": at})

    def execute(
        self,
        stages: Sequence[Stage],
        *,
        on_start: Callable[[Stage], None] | None = None,
        on_done: Callable[[Stage, float, bool], None] | None = None,
    ) -> dict[str, Json]:
        """Run the stages in order, but for those that are finished, and return all their results by name.

        `on_start(stage)` is called before a stage's work, `on_done(stage, seconds, skipped)` for each. Raises
        ValueError for impossible names or inputs, before any work, and Interrupted when a signal asked to stop.
        """
        check_stages(stages)
        with StopFlag() as stop:
            for stage in stages:
                skipped = stage.name in self._finished()
                if not skipped:
                    stop.raise_if_requested()
                    if on_start:
                        on_start(stage)
                    self._work(stage, stop)
                if on_done:
                    on_done(stage, self.seconds[stage.name], skipped)
        finished = self._finished()
        return {stage.name: finished[stage.name]["result"] for stage in stages}

    def _work(self, stage: Stage, stop: StopFlag) -> None:
        directory = self.path / stage.name
        files.make_directories(directory)
        finished = self._finished()
        context = StageContext(
            name=stage.name,
            inputs={name: finished[name]["result"] for name in stage.inputs},
            directory=directory,
            run_directory=self.path,
            journal=Journal(directory / JOURNAL, identity=stage.name),
            stop=stop,
        )
        start = time.monotonic()
        try:
            result = stage.work(context)
            seconds = self._spent(stage) + time.monotonic() - start
            self._journal.append({"event": "stage_done", "stage": stage.name, "result": result, "seconds": seconds})
        except BaseException as error:
            error.add_note(f"in stage {stage.name!r} of the run in {self.path}")
            with contextlib.suppress(OSError):  # a full disk is what ended the stage, and the error to be seen
                seconds = time.monotonic() - start
                self._journal.append({"event": "stage_interrupted", "stage": stage.name, "seconds": seconds})
            raise

    def _spent(self, stage: Stage) -> float:
        interrupted = (r for r in self._journal if r["event"] == "stage_interrupted" and r["stage"] == stage.name)
        return sum(record["seconds"] for record in interrupted)

    def _finished(self) -> dict[str, Any]:
        return {record["stage"]: record for record in self._journal if record["event"] == "stage_done"}

    def close(self) -> None:
        """Let another process continue the run."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_name(path: Path) -> None:
    if "\0" in str(path):
        raise ValueError(
            f"the name of a run directory cannot have a NUL byte, but got {str(path)!r}; choose another path"
        )
    if path.is_symlink() and not path.exists():
        raise ValueError(
            f"the run directory {path} is a link to {path.readlink()}, which does not exist; make that directory, or "
            "choose another path"
        )


def _check_is_run(path: Path) -> None:
    names = {entry.name for entry in path.iterdir()}
    foreign = sorted(name for name in names - {LOCK} if not files.is_leftover(name))
    if foreign and RUN not in names:
        raise ValueError(
            f"{path} is neither empty nor a run: it holds {foreign[0]!r} but no {RUN}; choose another run directory"
        )


def _is_changeable(field: str, patterns: Collection[str]) -> bool:
    segments = field.split(".")
    above = [".".join(segments[: length + 1]) for length in range(len(segments))]
    return any(matches(pattern, name) for pattern in patterns for name in above)
