"""How far a supernet's ranking can be trusted: which architectures to train alone, and the answer (`nasx.ranking`)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nasx.arch import Arch
from nasx.comparison import Interval
from nasx.cost import AdditiveCost
from nasx.pipeline.paths import paths_across
from nasx.pipeline.problem import distinct_samples
from nasx.ranking import rank_agreement, verdict
from nasx.report import RankingPlot, short_labels
from nasx.run.files import write_json
from nasx.space import ArchSet

COLUMNS = ("score", "trained_score", "macs")
TRUST, RANKING = "trust.json", "trust.svg"

_TRIES = 100  # for an architecture that was not drawn yet


def rank_statistics(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the statistics and the verdict in words; the verdict alone where a ranking cannot be judged.

    Where every network was trained with several seeds, they tell how well trainings agree (the ceiling).
    """
    scores, trained, costs = ([row[key] for row in rows] for key in COLUMNS)
    second = None
    if rows and all(len(row["trained_scores"]) > 1 for row in rows):
        trained, second = ([_mean(row["trained_scores"][turn::2]) for row in rows] for turn in range(2))
    try:
        agreement = rank_agreement(scores, trained, costs, second_accuracies=second, top_k=(1, min(5, len(rows))))
    except ValueError as error:
        return {"verdict": f"No verdict: {error}."}
    statistics = {key: value for key, value in asdict(agreement).items() if key != "regret"}
    regret = {str(k): value for k, value in agreement.regret.items()}
    return {"agreement": {**statistics, "regret": regret}, "verdict": verdict(agreement)}


def archs_across_costs(archs: ArchSet, cost: AdditiveCost | None, n: int, seed: int) -> list[Arch]:
    """Return up to n different architectures, one from each of n equal spans of the cost inside the budget.

    Without a cost that adds up they are drawn uniformly.
    """
    if cost is None:
        return distinct_samples(archs, n, seed)
    paths = paths_across(archs, cost, n, seed)
    found: dict[Arch, None] = {}
    for step in range(_TRIES * n):
        if (arch := paths(step)[0]) in archs:  # further budgets only filter
            found.setdefault(arch)
        if len(found) == n:
            break
    return list(found)


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def write_trust(directory: Path, judged: Mapping[str, Any]) -> None:
    """Write trust.json and the scatter plot trust.svg into a run directory."""
    from nasx.report.figures import save_svg, supernet_rankings

    write_json(directory / TRUST, dict(judged))
    save_svg(supernet_rankings([ranking_plot(name, result) for name, result in judged.items()]), directory / RANKING)


def ranking_plot(name: str, result: Mapping[str, Any]) -> RankingPlot:
    """Return what the figure of a trust stage's result shows."""
    rows, agreement = result["architectures"], result.get("agreement", {})
    scores, trained, costs = (tuple(row[key] for row in rows) for key in COLUMNS)
    intervals = {key: Interval(**agreement[key]) if agreement.get(key) else None for key in ("tau", "ceiling")}
    labels = tuple(short_labels([row["arch"] for row in rows]))
    return RankingPlot(name, scores, trained, costs, result["verdict"], labels, **intervals)
