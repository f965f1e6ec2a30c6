"""What tables, figures and summaries show of the stages' results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nasx.pipeline.trust import ranking_plot
from nasx.report import Candidate, Curve, RankingPlot, SearchHistory


@dataclass(frozen=True, slots=True)
class StageReport:
    """A stage's part of a report: a remark for the table of stages, and what figures show.

    `search` and `verdict` are its entries in `summary.json`.
    """

    detail: str = ""
    curves: tuple[Curve, ...] = ()
    history: SearchHistory | None = None
    ranking: RankingPlot | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = ""


def supernet_report(name: str, result: Mapping[str, Any]) -> StageReport:
    """Return the losses of a supernet."""
    return StageReport(curves=(curve(name, "supernets", result["losses"]),))


def search_report(name: str, result: Mapping[str, Any]) -> StageReport:
    """Return the candidates of a search, how many there were, and what racing took."""
    found = {key: value for key, value in result.items() if key not in ("best", "candidates")}
    detail = f"{found['evaluations']} of at most {int(found['feasible_at_most']):,} candidates"
    if found["failed"]:
        detail += f", {found['failed']} failed"
    if found["acceptance"] < 1:
        detail += f"; {found['acceptance']:.2%} of the draws met every budget"
    if found["racing_error"]:
        share = found["validation_images"] / found["validation_images_in_full"]
        risk = f"{found['racing_error']:.0%} risk a generation"
        detail += f"; racing took {share:.0%} of the validation images at {risk}"
    candidates = tuple(Candidate(generation, cost, score) for generation, cost, score in result["candidates"])
    return StageReport(detail, history=SearchHistory(name, candidates), search=found)


def trust_report(name: str, result: Mapping[str, Any]) -> StageReport:
    """Return the ranking, and what it is worth in words."""
    return StageReport(ranking=ranking_plot(name, result), verdict=result["verdict"])


def training_report(name: str, result: Mapping[str, Any]) -> StageReport:
    """Return the losses of networks."""
    curves = [curve(f"candidate {i}", name, network["losses"]) for i, network in enumerate(result["networks"])]
    return StageReport(curves=tuple(curve for curve in curves if curve.steps))


def silent_report(name: str, result: Mapping[str, Any]) -> StageReport:
    """Return nothing."""
    return StageReport()


REPORTS: Mapping[str, Callable[[str, Any], StageReport]] = {
    "supernet": supernet_report,
    "search": search_report,
    "trust": trust_report,
    "retrain": training_report,
    "inherit": silent_report,
    "finetune": training_report,
    "refit": silent_report,
    "evaluation": silent_report,
}
"""By the kind of a stage, as `stages.json` of a run names it."""


def curve(label: str, panel: str, losses: list[list[float]]) -> Curve:
    """Return a curve of a report."""
    return Curve(label, tuple(int(step) for step, _ in losses), tuple(loss for _, loss in losses), panel)
