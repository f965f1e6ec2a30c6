"""What a finished run leaves beside its stages: summary, architecture, weights, picture and report; reading it back."""

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
from nasx.pipeline.earlier import trained_supernet_of
from nasx.pipeline.images import ImageTask
from nasx.pipeline.problem import Problem
from nasx.pipeline.records import (
    AGAIN,
    ARCH,
    SUMMARY,
    read_arch,
    read_asked,
    read_summary,
    stage_results,
)
from nasx.pipeline.run_facts import FACTS, labels, write_facts
from nasx.pipeline.run_status import RecordedStage, read_stages
from nasx.pipeline.searchers import front_of
from nasx.pipeline.weight_files import read_weights
from nasx.run.checkpoints import unflatten_state
from nasx.run.files import read_record, write_bytes, write_json, write_text

_NEEDED = (SUMMARY, ARCH, "model.safetensors")
_VERSIONED = ("torch", "torchvision", "timm", "numpy", "safetensors")
_SUMMARISED = ("params", "macs", "val_score", "test_score", "val_accuracy", "test_accuracy", "arch", "weights_kept")

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
    """Write summary.json, arch.json, model.safetensors and, where they can be made, report.html and its figures."""
    from nasx.pipeline.run_report import write_run_report

    winner = outcome.winner
    arch = problem.space.canonical(winner["arch"])
    write_json(directory / SUMMARY, outcome.summary)
    write_text(directory / ARCH, arch.to_json())
    write_bytes(directory / "model.safetensors", save(read_weights(directory / winner["weights"], winner["sha256"])))
    write_facts(directory, problem)  # with the images that training found broken
    try:
        write_run_report(directory)
    except ImportError as error:
        logger.warning("no report was written: %s; then `report` writes it", error)


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run, read back: what it was asked for, the stages' results, the summary and the network it found.

    `asked` is what a command recorded beside the settings, such as the architecture that it trained.
    """

    directory: Path
    recipe: str
    asked: Mapping[str, Any]
    config: Mapping[str, Any]
    split: Mapping[str, Any]
    stages: Sequence[RecordedStage]
    results: Mapping[str, Any]
    summary: Mapping[str, Any]
    arch: Arch

    @property
    def weights(self) -> Path:
        """The file of the network's weights."""
        return self.directory / "model.safetensors"

    @property
    def winner(self) -> Mapping[str, Any]:
        """The result of the network that was found, with its weights' digest."""
        last = [stage for stage in self.stages if stage.kind == "evaluation"][-1]
        found: Mapping[str, Any] = next(iter(self.results[last.name]["networks"].values()))
        return found

    def supernet(self, stage: str) -> dict[str, Any] | None:
        """Return the state dict of the supernet that a stage trained, or None where there is none any more."""
        if stage not in self.results:
            return None
        checkpoint = trained_supernet_of(self.directory, stage, self.results[stage])
        if checkpoint is None:
            return None
        state: dict[str, Any] = unflatten_state(checkpoint.tensors, checkpoint.state)["model"]
        return state


def read_run(directory: Path, recipe: str | None = None) -> FinishedRun:
    """Return a finished run; a ValueError says that it is none, not finished, damaged, or another recipe's."""
    asked = read_asked(directory)["config"]
    if recipe is not None and asked.get("recipe") != recipe:
        raise ValueError(f"{directory} is a run of the recipe {asked.get('recipe')!r}; read it with that one")
    if missing := [name for name in _NEEDED if not (directory / name).is_file()]:
        raise ValueError(f"the run in {directory} is not finished, for it has no {missing[0]}; continue it first")
    results = stage_results(directory)
    stages = read_stages(directory)
    evaluated = [stage.name for stage in stages if stage.kind == "evaluation" and stage.name in results]
    if not evaluated:
        raise ValueError(f"the run in {directory} is not finished, for it has evaluated no network; continue it first")
    networks = results[evaluated[-1]]["networks"]
    summary = read_summary(directory, networks)
    for key, ordered in (
        ("networks", networks),
        ("stages", results),
    ):  # the file's keys are sorted
        summary[key] = {name: summary[key][name] for name in ordered if name in summary[key]}
    return FinishedRun(
        directory=directory,
        recipe=str(asked.get("recipe")),
        asked={key: value for key, value in asked.items() if key not in ("recipe", "config", "split", "problem")},
        config=asked["config"],
        split=asked["split"],
        stages=stages,
        results=results,
        summary=summary,
        arch=read_arch(directory / ARCH),
    )


def is_whole(directory: Path) -> bool:
    """Return whether the files that `write_outcome` wrote beside the stages are there and can be read."""
    try:
        read_summary(directory)
        read_arch(directory / ARCH)
        read_record(directory / FACTS, AGAIN)
    except (OSError, ValueError):
        return False
    return all((directory / name).is_file() for name in _NEEDED)


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
    blocks = problem.draw(problem.space.canonical(arch) if known in problem.space else known)
    return [{"title": block.title, "shade": block.shade, "lines": list(block.lines)} for block in blocks]


def _summarised(network: Mapping[str, Any]) -> dict[str, Any]:
    return {key: network[key] for key in _SUMMARISED if key in network}


def _level(stage: str) -> str:
    return stage.rpartition("/")[0] or stage
