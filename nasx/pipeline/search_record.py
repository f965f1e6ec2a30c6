"""The candidates of a search as its stage keeps them, generation by generation, for reports and those who watch.

`searched.json` in the stage's folder holds the space that was searched and its budgets; the stage's journal has, for
each generation, the index of each candidate in that space with its MACs and its score.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasx.arch import Arch
from nasx.pipeline.context import Context
from nasx.pipeline.events import CandidateScored
from nasx.pipeline.run_facts import budget_facts
from nasx.report import Candidate, SearchHistory
from nasx.run import Journal, write_json
from nasx.run.directory import LOST
from nasx.run.files import read_record
from nasx.run.stages import JOURNAL
from nasx.space import ArchSet, Space

SEARCHED = "searched.json"

_SHOWN = 10  # of the best candidates, where none are bred from


class SearchRecord:
    """Writes down the generations of a search as they end, each once, and reports their candidates."""

    def __init__(self, context: Context, archs: ArchSet) -> None:
        self._context, self._space = context, archs.space
        self._known = {record["generation"] for record in context.stage.journal if "generation" in record}
        self._count, self._best = 0, math.nan
        if context.group.first:
            searched = {
                "space": archs.space.to_json(),  # as text: its order counts
                "inside": [str(bound) for bound in archs.size_bounds],
                "budgets": budget_facts(archs, context.problem.macs),
                "best_kept": context.problem.config.search.bred_from or _SHOWN,
            }
            write_json(context.directory / SEARCHED, searched)

    def add(self, generation: int, scores: Mapping[Arch, float]) -> None:
        """Keep a generation, unless it is known from before an interruption."""
        context, macs = self._context, self._context.problem.macs
        first, self._count = self._count, self._count + len(scores)
        known = generation in self._known
        rows = [] if known else [(arch, macs(arch), score) for arch, score in scores.items()]
        if not known:
            kept = [
                [str(self._space.index(arch)), cost, None if math.isnan(score) else score] for arch, cost, score in rows
            ]
            context.stage.journal.append({"generation": generation, "candidates": kept})
        for number, (arch, score) in enumerate(scores.items(), first):
            self._best = score if math.isnan(self._best) else max(self._best, -math.inf if math.isnan(score) else score)
            if context.on_event and not known:
                cost = rows[number - first][1]
                context.on_event(CandidateScored(context.name, generation, number, arch, cost, score, self._best))


def read_search(folder: Path, stage: str) -> SearchHistory | None:
    """Return the search in a stage's folder with its candidates so far, None where it has not begun.

    It may be going on; nothing in the folder changes. A JournalDamaged says that a record is not what was written.
    """
    if not (folder / SEARCHED).is_file():
        return None
    searched = read_record(folder / SEARCHED, LOST, space=str, budgets=list, best_kept=object)
    space = Space.from_json(searched["space"])
    candidates = tuple(
        Candidate(record["generation"], cost, score, space[int(index)])
        for record in Journal(folder / JOURNAL, identity=stage, read_only=True)
        if "generation" in record
        for index, cost, score in record["candidates"]
    )
    budget = next(((own["low"], own["high"]) for own in searched["budgets"] if own["macs"]), (None, None))
    return SearchHistory(stage, candidates, searched["best_kept"], _options(space), budget)


def _options(space: Space) -> dict[str, tuple[Any, ...]]:
    """Return the options of every choice of a space, in its order."""
    found: dict[str, dict[Any, None]] = {}
    for name, choice in space.walk():
        found.setdefault(name, {}).update(dict.fromkeys(choice.values))
    return {name: tuple(values) for name, values in found.items()}
