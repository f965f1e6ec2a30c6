"""The plan of a run before it starts: sizes, budgets, and what its stages would cost."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from nasx._nested import flattened
from nasx.data.seeding import generators_kept
from nasx.pipeline.checks import check
from nasx.pipeline.estimate import Estimator, OnTiming, StageEstimate, estimates
from nasx.pipeline.machine import Machine
from nasx.pipeline.problem import Problem
from nasx.report import duration, si

_BINS, _DRAWS = 10, 2000


def check_plan(devices: int, time_limit: float | None) -> None:
    """Refuse, as ValueError, numbers that no plan can be made for."""
    if devices < 1:
        raise ValueError(f"`devices` (--devices) must be at least 1, but got {devices}")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"`time_limit` (--time-limit) must be hours above 0, but got {time_limit}")


@generators_kept()
def plan(
    problem: Problem[Any],
    *,
    machine: Machine | None = None,
    devices: int = 1,
    time_limit: float | None = None,
    timing: bool = True,
    on_timing: OnTiming = lambda what: None,
    on_sizes: Callable[[Mapping[str, Any]], object] = lambda document: None,
) -> dict[str, Any]:
    """Return what `plan` prints, as JSON values; `time_limit` in hours.

    `on_sizes` is called with the part that takes no steps, as soon as it is known. A ValueError says what a run could
    not do on any machine.
    """
    check_plan(devices, time_limit)
    check(problem)
    document = sizes(problem)
    on_sizes(document)
    document["devices"] = devices
    estimator = Estimator(problem, machine or Machine.from_environment(), devices, timing, on_timing)
    found = [_warned(estimate, time_limit) for estimate in estimates(estimator)]
    document["stages"] = [{k: v for k, v in asdict(estimate).items() if k != "result"} for estimate in found]
    document["config"] = problem.config.model_dump(mode="json")
    times = [estimate.seconds for estimate in found if estimate.seconds is not None]
    document["seconds"] = sum(times) if times else None
    return document


def sizes(problem: Problem[Any]) -> dict[str, Any]:
    """Return the part of a plan that takes no steps: the space, the budget, the baselines, the data."""
    space, cost, reach = problem.space, problem.cost, problem.reach
    low, high = problem.inside.size_bounds
    counted: dict[str, Any] = {}
    if cost is not None and reach is not None:
        costs = [cost(arch) for arch in space.sample(0, _DRAWS)]
        counts, edges = np.histogram(costs, bins=_BINS, range=(reach.low, max(reach.high, reach.low + 1)))
        counted = {
            "cost_min": reach.low,
            "cost_max": reach.high,
            "cost": cost.unit,
            "cost_histogram": {
                "edges": [float(edge) for edge in edges],
                "shares": [round(float(count) / len(costs), 4) for count in counts],
                "of": f"{len(costs)} architectures drawn uniformly from the whole space",
            },
        }
    counts_of = problem.task.counts
    return {
        "size": space.size,
        "feasible_size": high if low == high else None,
        "feasible_size_bounds": [low, high],
        **counted,
        "budgets": [str(budget) for budget in problem.inside.budgets],
        "baselines": {
            name: {"macs": problem.macs(baseline.arch), "params": problem.params(baseline.arch)}
            for name, baseline in problem.baselines.items()
        },
        "images": {"train": counts_of["train"], "val": counts_of["val"]},
    }


def size_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a plan that need no timing."""
    low, high = document["feasible_size_bounds"]
    feasible = f"{high:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    reach = ""
    if "cost" in document:
        reach = f", {document['cost_min']:,} to {document['cost_max']:,} {document['cost']}"
    yield f"whole space   {document['size']:.4g} networks{reach}"
    if document["budgets"]:
        yield f"inside        {feasible} networks: {'; '.join(document['budgets'])}"
    for name, counts in document["baselines"].items():
        yield f"{name:<13} {counts['macs']:,} MACs, {counts['params']:,} parameters"
    images = document["images"]
    yield f"samples       {images['train']:,} train, {images['val']:,} validation"
    if "cost" in document:
        yield ""
        histogram = document["cost_histogram"]
        yield f"costs in {document['cost']} of {histogram['of']}"
        for left, right, share in zip(histogram["edges"], histogram["edges"][1:], histogram["shares"], strict=False):
            yield f"{si(left):>9} to {si(right):<9} {share:7.2%} {'#' * round(60 * share)}"


def stage_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a plan about its stages."""
    for stage in document["stages"]:
        details = [stage["detail"]]
        if stage["seconds"] is not None:
            details.append(f"about {duration(stage['seconds'])}")
        if stage["peak_bytes"]:
            details.append(f"up to {stage['peak_bytes'] / 2**20:,.0f} MiB")
        if stage["size"] is not None:
            inside = f"{stage['feasible_size_bounds'][1]:.4g} of {stage['size']:.4g} networks inside the budget"
            given = " and ".join(stage["depends_on"])
            details.append(f"{inside}, for one result of {given}" if given else inside)
            if stage["acceptance"] < 1:
                details.append(f"{stage['acceptance']:.2%} of draws from it met every budget")
        yield f"{stage['name']:<18} {'; '.join(filter(None, details))}"
        if stage["warning"]:
            yield f"  warning: {stage['warning']}"
    if document["seconds"] is not None:
        plural = "" if document["devices"] == 1 else "s"
        yield f"all                about {duration(document['seconds'])} on {document['devices']} device{plural}"


def setting_lines(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield every setting as `section.field = value`."""
    for name, value in flattened(config):
        yield f"{name} = {'none' if value is None else value}"


def _warned(estimate: StageEstimate, time_limit: float | None) -> StageEstimate:
    if time_limit is None or estimate.seconds is None or estimate.seconds <= 3600 * time_limit:
        return estimate
    warning = (
        f"would take about {duration(estimate.seconds)}, more than the {time_limit:g} h given: "
        "use more devices, fewer epochs or candidates, or continue the run in several jobs"
    )
    return replace(estimate, warning=warning)
