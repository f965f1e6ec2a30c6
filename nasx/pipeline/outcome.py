"""What a finished run leaves beside its stages: summary, architecture, weights, picture and report."""

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors.torch import save

import nasx
from nasx.arch import Arch
from nasx.pipeline.images import ImageTask
from nasx.pipeline.problem import Problem
from nasx.pipeline.records import ARCH, SUMMARY, WEIGHTS
from nasx.pipeline.run_facts import labels, write_facts
from nasx.pipeline.searchers import front_of
from nasx.pipeline.weight_files import read_weights
from nasx.run.files import write_bytes, write_json, write_text

_VERSIONED = ("torch", "timm", "pillow", "numpy", "safetensors")
_SUMMARISED = (
    *("params", "macs", "budget_costs", "val_score", "test_score", "val_accuracy", "test_accuracy"),
    *("arch", "weights_kept"),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run's evaluation came to: its summary, the network that was found, and the front that it stands on."""

    summary: dict[str, Any]
    winner: Mapping[str, Any]
    front: Sequence[Mapping[str, Any]]
    tests: Mapping[str, Mapping[str, Any]]


def outcome_of(problem: Problem[Any], results: Mapping[str, Any], seconds: Mapping[str, float]) -> Outcome:
    """Return the outcome of a run whose last stage is an evaluation; scores of accuracy lie in 0..1."""
    stages = problem.stages()
    tests = {stage.name: results[stage.name]["networks"] for stage in stages if stage.kind == "evaluation"}
    evaluated = results[list(tests)[-1]]
    winner = next(iter(evaluated["networks"].values()))  # what was searched comes first
    front = front_of([_costed(problem, row) for row in evaluated.get("front", [winner])], "val_score")
    reports = {stage.name: stage.report(results[stage.name]) for stage in stages}
    verdicts = {_level(name): report.verdict for name, report in reports.items() if report.verdict}
    config = problem.config.model_dump(mode="json")
    summary: dict[str, Any] = {
        "preset": config["preset"],
        **({"method": config["method"]} if "method" in config and "searched" in evaluated["networks"] else {}),
        "seed": config["seed"],
        "metric": problem.task.metric_name,
        "networks": {name: _summarised(network) for name, network in evaluated["networks"].items()},
        **{
            name: [_summarised(network) for network in networks]
            for name, networks in evaluated.items()
            if name != "networks"
        },
        "stages": {name: {"seconds": round(spent, 2)} for name, spent in seconds.items()},
        "searches": {name: dict(report.search) for name, report in reports.items() if report.search},
        **({"trust": verdicts} if verdicts else {}),
        "split": problem.task.record(),
        "labels": labels(problem),
        "drawings": {name: _drawing(problem, network["arch"]) for name, network in evaluated["networks"].items()},
        "versions": versions(),
    }
    if isinstance(problem.task, ImageTask):
        mean, std = problem.task.statistics
        summary["normalisation"] = {"mean": list(mean), "std": list(std)}
    return Outcome(summary, winner, front, tests)


def _costed(problem: Problem[Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network with the costs that its search traded the score for."""
    arch = problem.space.canonical(network["arch"])
    return {**network, "costs": [float(cost(arch)) for cost in problem.search_costs]}


def write_outcome(directory: Path, problem: Problem[Any], outcome: Outcome) -> None:
    """Write summary.json, arch.json, model.safetensors and, where they can be made, figures and report.html, the last.

    Where the report is there, so are the others.
    """
    from nasx.pipeline.run_report import write_run_report

    winner = outcome.winner
    arch = problem.space.canonical(winner["arch"])
    write_json(directory / SUMMARY, outcome.summary)
    write_text(directory / ARCH, arch.to_json())
    write_bytes(directory / WEIGHTS, save(read_weights(directory / winner["weights"], winner["sha256"])))
    write_facts(directory, problem)  # with the images that training found broken
    try:
        write_run_report(directory)
    except ImportError as error:
        logger.warning("no report was written: %s; then `report` writes it", error)


def versions() -> dict[str, str]:
    """Return the versions of what a result can depend on."""
    found = {"nasx": nasx.__version__, "python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _drawing(problem: Problem[Any], arch: Mapping[str, Any]) -> list[dict[str, Any]]:
    known = Arch(arch)
    blocks = problem.presentation.draw(problem.space.canonical(arch) if known in problem.space else known)
    return [{"title": block.title, "shade": block.shade, "lines": list(block.lines)} for block in blocks]


def _summarised(network: Mapping[str, Any]) -> dict[str, Any]:
    return {key: network[key] for key in _SUMMARISED if key in network}


def _level(stage: str) -> str:
    return stage.rpartition("/")[0] or stage
