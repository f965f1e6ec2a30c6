"""A run directory seen from outside, while it works or afterwards: which stages there are, and how far they are."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nasx.run import write_json
from nasx.run.stages import JOURNAL, RUN

if TYPE_CHECKING:
    from nasx.pipeline.stages import RunStage

STAGES = "stages.json"


@dataclass(frozen=True, slots=True)
class RecordedStage:
    """A stage of a run, as its directory lists it."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class StageStatus:
    """How far a stage is; `note` is the last that it wrote down, such as a step's loss or the candidates scored."""

    name: str
    state: Literal["done", "begun", "failed", "waiting"]
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is."""

    directory: Path
    recipe: str
    started: str
    stages: tuple[StageStatus, ...]

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return all(stage.state == "done" for stage in self.stages)


def write_stages(directory: Path, stages: "Sequence[RunStage]") -> None:
    """List the stages of a run in its directory, for those who read it back."""
    listed = [{"name": stage.name, "kind": stage.kind} for stage in stages]
    path = directory / STAGES
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != listed:
        write_json(path, listed)


def read_stages(directory: Path) -> tuple[RecordedStage, ...]:
    """Return the stages that a run directory lists."""
    path = directory / STAGES
    if not path.is_file():
        raise ValueError(f"{directory} lists no stages, for it has no {STAGES}; continue the run with its own command")
    return tuple(RecordedStage(row["name"], row["kind"]) for row in json.loads(path.read_text(encoding="utf-8")))


def status(directory: str | Path) -> RunStatus:
    """Return how far the run in a directory is; nothing there changes. A ValueError says that there is none."""
    directory = Path(directory)
    if not (directory / RUN).is_file():
        raise ValueError(f"{directory} is no run directory; name one that `run` or `train` has filled")
    described = json.loads((directory / RUN).read_text(encoding="utf-8"))
    records = [json.loads(line)["record"] for line in _complete_lines(directory / JOURNAL)]
    done = {record["stage"]: record["seconds"] for record in records if record.get("event") == "stage_done"}
    stages = []
    for stage in read_stages(directory):
        folder = directory / stage.name
        if stage.name in done:
            stages.append(StageStatus(stage.name, "done", done[stage.name]))
            continue
        settings = folder / "settings.json"
        failure = json.loads(settings.read_text(encoding="utf-8")).get("failure", "") if settings.is_file() else ""
        if failure:
            stages.append(StageStatus(stage.name, "failed", note=failure))
        elif settings.is_file():
            stages.append(StageStatus(stage.name, "begun", note=_last_note(folder)))
        else:
            stages.append(StageStatus(stage.name, "waiting"))
    return RunStatus(directory, str(described["config"].get("recipe")), str(described["started"]), tuple(stages))


def status_lines(found: RunStatus) -> list[str]:
    """Return a status for people."""
    from nasx.report import duration

    lines = [f"{found.directory}: {found.recipe}, started {found.started}"]
    for stage in found.stages:
        time = "" if stage.seconds is None else duration(stage.seconds)
        lines.append(f"{stage.name:<20} {stage.state:<8} {time or stage.note}".rstrip())
    return lines


def _last_note(folder: Path) -> str:
    """Return the last line of a stage's losses, or the number of records in its journal."""
    tables = sorted(folder.glob("*metrics.csv"), key=lambda path: path.stat().st_mtime)
    if tables and (lines := tables[-1].read_text(encoding="utf-8").splitlines()[1:]):
        step, loss, _ = lines[-1].split(",")
        return f"step {int(step) + 1:,}, loss {float(loss):.3f}"
    records = sum(1 for _ in _complete_lines(folder / JOURNAL))
    return f"{records} records" if records else ""


def _complete_lines(path: Path) -> list[str]:
    """Return the lines of a journal that another process may be writing to, but for one that is not complete."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()
