"""Whether a supernet's ranking deserves belief: which architectures to ask, and the answer (`nasx.ranking`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nasx.arch import Arch
from nasx.cost import AdditiveCost
from nasx.feasible import Feasible
from nasx.ranking import rank_agreement, verdict
from nasx.pipeline.problem import Problem
from nasx.report import RankingPlot
from nasx.run.files import write_json
from nasx.space import Space
from nasx.train import StratifiedPaths

COLUMNS = ("score", "accuracy", "macs")

_TRIES = 100  # for an architecture that was not drawn yet


def judged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the statistics and the verdict in words; the verdict alone where a ranking cannot be judged."""
    scores, accuracies, costs = ([row[key] for row in rows] for key in COLUMNS)
    try:
        agreement = rank_agreement(scores, accuracies, costs, top_k=(1, min(5, len(rows))))
    except ValueError as error:
        return {"verdict": f"No verdict: {error}."}
    statistics = {key: value for key, value in asdict(agreement).items() if key != "regret"}
    regret = {str(k): value for k, value in agreement.regret.items()}
    return {"agreement": {**statistics, "regret": regret}, "verdict": verdict(agreement)}


def spread(problem: Problem[Any], space: Space, inside: Feasible, n: int, seed: int) -> list[Arch]:
    """Return up to n different architectures, one from each of n equal spans of the cost inside the budget."""
    bounds = next(budget for budget in inside.budgets if isinstance(budget.cost, AdditiveCost))
    paths = StratifiedPaths(space, problem.cost, n, seed, at_least=_int(bounds.lower), at_most=_int(bounds.upper))
    found: dict[Arch, None] = {}
    for step in range(_TRIES * n):
        if (arch := paths(step)[0]) in inside:  # further budgets only filter
            found.setdefault(arch)
        if len(found) == n:
            break
    return list(found)


def _int(bound: float) -> int | None:
    return int(bound) if math.isfinite(bound) else None


def write_trust(directory: Path, judged: Mapping[str, Any]) -> None:
    """Write trust.json and the scatter plot trust.svg into a run directory."""
    from nasx.report.figures import save_svg, supernet_rankings

    write_json(directory / "trust.json", dict(judged))
    save_svg(
        supernet_rankings([ranking_plot(name, result) for name, result in judged.items()]), directory / "trust.svg"
    )


def ranking_plot(name: str, result: Mapping[str, Any]) -> RankingPlot:
    """Return what the figure of a trust stage's result shows."""
    scores, accuracies, costs = (tuple(row[key] for row in result["architectures"]) for key in COLUMNS)
    return RankingPlot(name, scores, accuracies, costs, verdict=result["verdict"])
