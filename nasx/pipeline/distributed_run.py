"""A run by several processes: the first rank owns the run directory, the others do a share of the work."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nasx.run import Json, RunDirectory, Stage, StageContext, StopFlag
from nasx.train import Group


class CopiedJournal:
    """A stage's journal on a rank that does not write: what the first rank found in it, and what was added since."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._records = [dict(record) for record in records]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record for this rank alone; the first rank adds it to the file."""
        self._records.append(dict(record))


def execute(
    run: RunDirectory | None,
    directory: Path,
    stages: Sequence[Stage],
    group: Group,
    on_start: Callable[[Stage], None] | None = None,
    on_done: Callable[[Stage, float, bool], None] | None = None,
) -> dict[str, Json]:
    """Run stages on all ranks of a group and return their results; `run` is None on all ranks but the first.

    `on_start` and `on_done` are called as `RunDirectory.execute` does, on the first rank. Every rank does a stage's
    work with the same inputs; the directory must be one that all ranks see. What the first rank returns, journals and
    saves counts. Raises what `RunDirectory.execute` does, on every rank.
    """
    if run is not None:
        if group.size == 1:
            return run.execute(stages, on_start=on_start, on_done=on_done)
        results = run.execute([_announced(stage, group) for stage in stages], on_start=on_start, on_done=on_done)
        group.from_first((results,))
        return results
    works = {stage.name: stage for stage in stages}
    with StopFlag() as stop:
        while True:
            message: tuple[Any, ...] = group.from_first(())
            if len(message) == 1:
                return message[0]
            name, inputs, records = message
            context = StageContext(
                name=name,
                inputs=inputs,
                directory=directory / name,
                run_directory=directory,
                journal=CopiedJournal(records),
                stop=stop,
            )
            works[name].work(context)


def _announced(stage: Stage, group: Group) -> Stage:
    def work(context: StageContext) -> Json:
        group.from_first((context.name, dict(context.inputs), list(context.journal)))
        return stage.work(context)

    return replace(stage, work=work)
