"""What a run searches, written into its directory as it starts, so that its report needs nothing but the directory."""

import math
from pathlib import Path
from typing import Any

from nasx.cost import Cost
from nasx.pipeline.images import ImageTask
from nasx.pipeline.problem import Problem
from nasx.run import write_json
from nasx.space import ArchSet

FACTS = "problem.json"

_NAMED = 20  # broken images that are named


def facts_of(problem: Problem[Any]) -> dict[str, Any]:
    """Return what a report says of a problem, as JSON values; large counts are texts."""
    low, high = problem.inside.size_bounds
    reach = problem.reach
    facts: dict[str, Any] = {
        "title": problem.presentation.title,
        "metric": problem.task.metric_name,
        "hits": problem.task.scores_hits,
        "loss": problem.task.loss_name,
        "space": {"size": str(problem.space.size), "inside": [str(low), str(high)]},
        "budgets": budget_facts(problem.inside, problem.macs),
        "reach": None if reach is None or problem.cost is None else [reach.low, reach.high, problem.cost.unit],
        "samples": dict(problem.task.counts),
        "labels": labels(problem),
        "legend": problem.presentation.legend,
    }
    if isinstance(problem.task, ImageTask):
        dataset = problem.task.dataset
        facts["classes"] = len(dataset.classes)
        facts["broken"] = len(dataset.broken)
        facts["broken_named"] = [str(image) for image in dataset.broken[:_NAMED]]
        facts["remarks"] = list(dataset.remarks)
    return facts


def budget_facts(archs: ArchSet, macs: Cost) -> list[dict[str, Any]]:
    """Return the budgets that some architectures meet: in words, their bounds, and whether they are about the MACs."""
    return [
        {
            "text": str(budget),
            "macs": bool(budget.cost == macs),
            "low": _number(budget.lower),
            "high": _number(budget.upper),
        }
        for budget in archs.budgets
    ]


def write_facts(directory: Path, problem: Problem[Any]) -> None:
    """Write what a run searches into its directory."""
    write_json(directory / FACTS, facts_of(problem))


def labels(problem: Problem[Any]) -> dict[str, str]:
    """Return what tables call the networks of a finished run."""
    named = {name: baseline.label for name, baseline in problem.baselines.items()}
    drawn = getattr(problem.config, "method", "") == "random"  # GLiT's way to search: none
    return {"searched": "best drawn" if drawn else "searched", **named, "random": "random in the budget"}


def _number(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None
