"""What tables and summaries say of a stage's result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nasx._words import number_of


@dataclass(frozen=True, slots=True)
class StageReport:
    """A stage's part of a summary: a remark for the table of stages, and its entries in `summary.json`."""

    detail: str = ""
    search: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = ""


def supernet_report(result: Mapping[str, Any]) -> StageReport:
    """Return how long a supernet was trained."""
    skipped = f", {result['skipped_steps']:,} left out" if result["skipped_steps"] else ""
    earlier = ", taken from an earlier run" if result.get("earlier") else ""
    return StageReport(f"{number_of(result['steps'], 'step')}{skipped}{earlier}")


def search_report(result: Mapping[str, Any]) -> StageReport:
    """Return how many candidates a search scored, and what racing took."""
    found = {key: value for key, value in result.items() if key != "best"}
    detail = f"{found['evaluations']} of at most {number_of(int(found['feasible_at_most']), 'candidate')}"
    if found["failed"]:
        detail += f", {found['failed']} failed"
    if found["acceptance"] < 1:
        detail += f"; {found['acceptance']:.2%} of the draws met every budget"
    if found["racing_error"]:
        share = found["validation_images"] / found["validation_images_in_full"]
        risk = f"{found['racing_error']:.0%} risk a generation"
        detail += f"; racing took {share:.0%} of the validation images at {risk}"
    return StageReport(detail, search=found)


def trust_report(result: Mapping[str, Any]) -> StageReport:
    """Return what a ranking is worth in words."""
    return StageReport(verdict=result["verdict"])


def training_report(result: Mapping[str, Any]) -> StageReport:
    """Return how many networks were trained."""
    return StageReport(number_of(len(result["networks"]), "network"))


_REPORTS: Mapping[str, Callable[[Any], StageReport]] = {
    "supernet": supernet_report,
    "search": search_report,
    "trust": trust_report,
    "retrain": training_report,
    "inherit": training_report,
    "finetune": training_report,
    "refit": training_report,
}
"""By the kind of a stage, as `stages.json` of a run names it."""


def report_of_stage(kind: str, result: Any) -> StageReport:
    """Return what tables and summaries say of a kind of stage's result; nothing of kinds that the library lacks."""
    return _REPORTS[kind](result) if kind in _REPORTS else StageReport()
