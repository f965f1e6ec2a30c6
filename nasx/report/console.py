"""Tables and progress for terminals and logs."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, Self

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from nasx.report.formats import ABSENT, amount, duration, score, si
from nasx.report.model import NetworkRow, StageRow, cost_units


def networks_table(networks: Sequence[NetworkRow], metric: str = "accuracy") -> Table:
    """Return the networks with their sizes and scores; the first, which the search found, stands out."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("network")
    units = cost_units(networks)
    for heading in ("parameters", "MACs", *units, "validation", "test"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, network in enumerate(networks):
        scores = (score(value, metric) for value in (network.val_accuracy, network.test_accuracy))
        costs = (amount(network.costs.get(unit)) for unit in units)
        cells = si(network.params), si(network.macs), *costs, *scores
        # names are text, never markup
        table.add_row(Text(network.label), *cells, style="bold" if number == 0 else "")
    return table


def stages_table(stages: Sequence[StageRow]) -> Table:
    """Return the stages with their times and the sum of these."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=len(stages) > 1)
    table.add_column("stage", footer="all")
    total = duration(sum(stage.seconds or 0 for stage in stages))
    table.add_column("time", total, justify="right", no_wrap=True)
    table.add_column("")
    for stage in stages:
        time = ABSENT if stage.seconds is None else duration(stage.seconds)
        table.add_row(Text(stage.name), time, Text(stage.detail, style="dim"))
    return table


class Bars(Protocol):
    """What `progress` gives: rich's Progress on a terminal, plain lines elsewhere."""

    def add_task(self, description: str, *, total: float | None, note: str = "") -> TaskID:
        """Start a task of `total` units and return its number."""

    def update(
        self, task_id: TaskID, *, completed: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        """Say how much of a task is done, with a short note such as the loss."""


def progress(
    console: Console | None = None, *, every: float = 10, clock: Callable[[], float] = time.monotonic
) -> AbstractContextManager[Bars]:
    """Return progress bars on standard error: description, bar, count, time left and a note for each task.

    Where standard error is no terminal, at most one line is written in `every` seconds, so that a log shows life.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        return ProgressLines(console, every, clock)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        _NoteColumn(),
        console=console,
    )


class ProgressLines:
    """Progress for logs: a line for the task at hand when `every` seconds have passed since the last one.

    The time left is what the rest takes at the pace since the task's first update here.
    """

    def __init__(self, console: Console, every: float = 10, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._every, self._clock = console, every, clock
        self._due = clock() + every
        self._tasks: list[tuple[str, float | None]] = []
        self._begun: dict[int, tuple[float, float]] = {}  # when, and how much was done then

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave nothing open; the lines written stay."""

    def add_task(self, description: str, *, total: float | None, note: str = "") -> TaskID:
        """Start a task of `total` units and return its number."""
        self._tasks.append((description, total))
        return TaskID(len(self._tasks) - 1)

    def update(
        self, task_id: TaskID, *, completed: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        """Write the task's state, if a line is due."""
        description, known_total = self._tasks[task_id]
        total = known_total if total is None else total
        self._tasks[task_id] = description, total
        now = self._clock()
        if completed is None:
            return
        begun, before = self._begun.setdefault(task_id, (now, completed))
        if now < self._due:
            return
        self._due = now + self._every
        count = f"{completed:.4g}" if total is None else f"{int(completed)}/{int(total)}"
        left = ""
        if total is not None and before < completed < total:
            left = f"{duration((now - begun) * (total - completed) / (completed - before))} left"
        self._console.print(Text("  ".join(filter(None, (description, count, note, left)))), soft_wrap=True)


class _NoteColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("note", "")), style="dim")
