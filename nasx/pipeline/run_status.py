"""A run directory seen from outside, while it works or afterwards: which stages there are, and how far they are."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nasx.pipeline.records import AGAIN, SETTINGS, read_asked, read_settings
from nasx.run import DamagedFile, Journal, write_json
from nasx.run.files import read_json, read_record
from nasx.run.lock import is_held
from nasx.run.stages import JOURNAL, LOCK, RUN

if TYPE_CHECKING:
    from nasx.pipeline.progress import Progress
    from nasx.pipeline.stages import RunStage

STAGES = "stages.json"
PROGRESS = "progress.json"
"""How far the stage at work is, for those who look from outside; written every few seconds."""

_EVERY = 5.0  # seconds between two of its versions
_RECENT = 20  # rows of a training's metrics that a loss is averaged over


@dataclass(frozen=True, slots=True)
class RecordedStage:
    """A stage of a run, as its directory lists it."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class StageStatus:
    """How far a stage is; what is not known is None.

    `done` of `total` are its steps, candidates or networks, `remaining` the seconds that the rest takes at the present
    pace. `loss` is the mean of the last steps, `best` the highest score of its candidates or networks, and memory is
    the device's on CUDA, else the process's. `note` is what the stage says itself, or why it failed.
    """

    name: str
    state: Literal["done", "begun", "failed", "waiting"]
    kind: str = ""
    seconds: float | None = None
    done: float | None = None
    total: float | None = None
    remaining: float | None = None
    loss: float | None = None
    steps_per_second: float | None = None
    samples_per_second: float | None = None
    memory_mib: float | None = None
    best: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is."""

    directory: Path
    recipe: str
    started: str
    stages: tuple[StageStatus, ...]
    running: bool | None = None
    """Whether a process works on it now; None where that can only be seen on another host."""
    restarts: int = 0
    """How often it was continued."""

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return all(stage.state == "done" for stage in self.stages)

    @property
    def current(self) -> StageStatus | None:
        """The stage that has begun and is not done; None where there is none."""
        return next((stage for stage in self.stages if stage.state in ("begun", "failed")), None)


class ProgressFile:
    """Shows a stage's progress as another function does, and writes it into the run directory every few seconds."""

    def __init__(
        self, directory: Path, stage: str, shown: "Progress", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._stage, self._shown, self._clock = directory / PROGRESS, stage, shown, clock
        self._due = clock() + _EVERY
        self._begun: dict[str, tuple[float, float]] = {}  # when, and how much was done then

    def __call__(self, description: str, done: float, total: float, note: str = "") -> None:
        """Show a task's state, and write it if it is due."""
        self._shown(description, done, total, note)
        now = self._clock()
        begun, before = self._begun.setdefault(description, (now, done))
        if now < self._due:
            return
        self._due = now + _EVERY
        rate = (done - before) / (now - begun) if now > begun else 0.0
        with contextlib.suppress(OSError):  # a display; what it needs of the disk, the run itself will ask for
            write_json(
                self._path, {"stage": self._stage, "done": done, "total": total, "note": note, "per_second": rate}
            )


def write_stages(directory: Path, stages: "Sequence[RunStage]") -> None:
    """List the stages of a run in its directory, for those who read it back."""
    listed = [{"name": stage.name, "kind": stage.kind} for stage in stages]
    path = directory / STAGES
    with contextlib.suppress(FileNotFoundError, DamagedFile):
        if read_json(path, AGAIN) == listed:
            return
    write_json(path, listed)


def read_stages(directory: Path) -> tuple[RecordedStage, ...]:
    """Return the stages that a run directory lists."""
    path = directory / STAGES
    if not path.is_file():
        raise ValueError(f"{directory} lists no stages, for it has no {STAGES}; continue the run with its own command")
    rows = read_json(path, AGAIN)
    try:
        return tuple(RecordedStage(str(row["name"]), str(row["kind"])) for row in rows)
    except (LookupError, TypeError) as error:
        raise DamagedFile(f"{path} is damaged (it is no list of stages); {AGAIN}") from error


def read_events(directory: Path) -> list[dict[str, Any]]:
    """Return what the journal of a run says, the oldest first; nothing changes. A ValueError: there is no run."""
    if not (directory / RUN).is_file():
        raise ValueError(f"{directory} is no run directory; name one that `run` or `train` has filled")
    return list(Journal(directory / JOURNAL, read_only=True))


def status(directory: str | Path) -> RunStatus:
    """Return how far the run in a directory is; nothing there changes.

    It can be asked while another process works there. A ValueError says that there is no run.
    """
    directory = Path(directory)
    done = _seconds(read_events(directory))
    described = read_asked(directory, started=str)
    running = is_held(directory / LOCK)
    found = [_stage_status(directory, stage, done, running) for stage in read_stages(directory)]
    events = read_events(directory)  # again, because stages may have ended while their folders were read
    done = _seconds(events)
    stages = tuple(
        StageStatus(stage.name, "done", stage.kind, done[stage.name]) if stage.name in done else stage
        for stage in found
    )
    restarts = max(0, sum(record.get("event") == "started" for record in events) - 1)
    recipe = str(described["config"].get("recipe"))
    return RunStatus(directory, recipe, str(described["started"]), stages, running, restarts)


def status_lines(found: RunStatus) -> Iterator[str]:
    """Yield a status for people."""
    from nasx.report import duration

    state = (
        "finished" if found.finished else {True: "running", False: "stopped", None: "on another host"}[found.running]
    )
    restarts = f", continued {found.restarts} times" if found.restarts > 1 else ", continued once" * found.restarts
    yield f"{found.directory}: {found.recipe}, {state}, started {found.started}{restarts}"
    for stage in found.stages:
        words = [duration(stage.seconds)] if stage.seconds is not None else list(_words(stage))
        yield f"{stage.name:<20} {stage.state:<8} {', '.join(words)}".rstrip()


def _words(stage: StageStatus) -> Iterator[str]:
    from nasx.report import duration

    if stage.done is not None and stage.total:
        yield f"{stage.done:,.4g} of {stage.total:,.0f} ({stage.done / stage.total:.0%})"
    if stage.loss is not None:
        yield f"loss {stage.loss:.3f}"
    if stage.best is not None:
        yield f"best so far {stage.best:.4f}"
    if stage.steps_per_second:
        yield f"{stage.steps_per_second:.3g} steps/s"
    if stage.samples_per_second:
        yield f"{stage.samples_per_second:,.4g} samples/s"
    if stage.memory_mib:
        yield f"{stage.memory_mib:,.0f} MiB"
    if stage.remaining is not None:
        yield f"{duration(stage.remaining)} left"
    if stage.note:
        yield stage.note


def _seconds(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return how long each stage took that is done."""
    return {record["stage"]: record["seconds"] for record in events if record.get("event") == "stage_done"}


def _stage_status(
    directory: Path, stage: RecordedStage, seconds: Mapping[str, float], running: bool | None
) -> StageStatus:
    name, kind, folder = stage.name, stage.kind, directory / stage.name
    if name in seconds:
        return StageStatus(name, "done", kind, seconds[name])
    if not (folder / SETTINGS).is_file():
        return StageStatus(name, "waiting", kind)
    settings = read_settings(folder)
    failure = str(settings.get("failure", ""))
    seen: dict[str, Any] = {**_progress(directory, name), **_training(folder, settings)}
    rate, total = seen.pop("per_second", 0), seen.get("total")
    if running is not False and rate > 0 and total is not None and total > seen["done"]:
        seen["remaining"] = (total - seen["done"]) / rate
    best = _best(folder, name)
    return StageStatus(name, "failed" if failure else "begun", kind, best=best, **{**seen, "note": failure})


def _progress(directory: Path, stage: str) -> dict[str, Any]:
    """Return what the run wrote of the progress of a stage."""
    number = int | float
    try:
        noted = read_record(directory / PROGRESS, "", stage=str, done=number, total=number, per_second=number)
    except (FileNotFoundError, DamagedFile):  # a display, which is written again
        return {}
    if noted["stage"] != stage:
        return {}
    return {name: noted[name] for name in ("done", "total", "per_second")}


def _training(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the metrics file that was written last says."""
    from nasx.pipeline.metrics_file import METRICS, read_metrics  # which needs torch

    tables = sorted(folder.glob(f"*{METRICS}"), key=lambda path: path.stat().st_mtime)
    metrics = read_metrics(tables[-1]) if tables else None
    if metrics is None or not metrics.steps:
        return {}
    losses = [loss for loss in metrics.losses[-_RECENT:] if math.isfinite(loss)]
    samples = metrics.samples_per_second[-1]
    batch = next((own["batch_size"] for own in settings.values() if isinstance(own, dict) and "batch_size" in own), 0)
    found = {
        "loss": sum(losses) / len(losses) if losses else None,
        "samples_per_second": samples,
        "steps_per_second": samples / batch if batch else None,
        "memory_mib": metrics.memory_mib[-1],
    }
    return found if len(tables) > 1 or tables[0].name != METRICS else {"done": metrics.steps[-1] + 1, **found}


def _best(folder: Path, stage: str) -> float | None:
    """Return the highest score that the journal of a stage has."""
    scores = []
    for record in Journal(folder / JOURNAL, identity=stage, read_only=True):
        if "generation" in record:
            scores += [score for _, _, score in record["candidates"] if score is not None]
        elif record.get("score") is not None:
            scores.append(record["score"])
        elif "network" in record:
            scores.append(record["network"].get("val_score", -math.inf))
    return max(scores, default=None)
