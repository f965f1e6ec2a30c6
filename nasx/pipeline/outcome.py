"""What a finished run leaves beside its stages: summary, architecture, weights, picture and report; reading it back."""

import json
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
from nasx.pipeline.networks import read_weights
from nasx.pipeline.problem import Problem, repeated_parts
from nasx.pipeline.run_status import RecordedStage, read_stages
from nasx.pipeline.searchers import front_of
from nasx.pipeline.stage_reports import REPORTS, StageReport
from nasx.report import BlockDrawing, NetworkRow, Report, StageRow
from nasx.run import Journal
from nasx.run.checkpoints import Checkpoints, unflatten_state
from nasx.run.files import write_bytes, write_json, write_text
from nasx.run.stages import CHECKPOINTS, JOURNAL, RUN

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
    rows = [{**row, "costs": [row["macs"]]} for row in evaluated.get("front", [winner])]
    front = front_of(rows, "val_score")
    reports = {stage.name: stage.report(results[stage.name]) for stage in stages}
    verdicts = {_level(name): report.verdict for name, report in reports.items() if report.verdict}
    config = problem.config.model_dump(mode="json")
    summary: dict[str, Any] = {
        "preset": config["preset"],
        **({"method": config["method"]} if "method" in config else {}),
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
        "drawing": {
            "title": problem.title,
            "legend": problem.drawing_legend,
            "blocks": [
                {"title": block.title, "shade": block.shade, "lines": list(block.lines)}
                for block in problem.draw(problem.space.canonical(winner["arch"]))
            ],
        },
        "versions": versions(),
    }
    if isinstance(problem.task, ImageTask):
        mean, std = problem.task.statistics
        summary["normalisation"] = {"mean": list(mean), "std": list(std)}
    return Outcome(summary, winner, front, tests)


def write_outcome(directory: Path, problem: Problem[Any], results: Mapping[str, Any], outcome: Outcome) -> None:
    """Write summary.json, arch.json, model.safetensors and, where they can be made, two figures and report.html."""
    winner = outcome.winner
    arch = problem.space.canonical(winner["arch"])
    write_json(directory / "summary.json", outcome.summary)
    write_text(directory / "arch.json", arch.to_json())
    write_bytes(directory / "model.safetensors", save(read_weights(directory / winner["weights"], winner["sha256"])))
    try:
        write_reports(directory, read_run(directory))
    except ImportError as error:
        logger.warning("no report was written: %s; then `report` writes it", error)


def write_reports(directory: Path, run: "FinishedRun") -> Path:
    """Write report.html and its figures as SVG into a finished run's directory, and return the report's path."""
    from nasx.report.figures import accuracy_over_cost, architecture, save_svg
    from nasx.report.html import write_report

    report = report_of(run)
    save_svg(architecture(report.blocks, report.shade_legend), directory / "architecture.svg")
    save_svg(
        accuracy_over_cost(report.searches, report.networks, metric=report.metric), directory / "accuracy_over_macs.svg"
    )
    write_report(directory / "report.html", report)
    return directory / "report.html"


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
        checkpoint = Checkpoints(self.directory / stage / CHECKPOINTS, identity=stage).latest()
        if checkpoint is None or checkpoint.step != self.results[stage]["steps"]:
            return None
        state: dict[str, Any] = unflatten_state(checkpoint.tensors, checkpoint.state)["model"]
        return state


def read_run(directory: Path, recipe: str | None = None) -> FinishedRun:
    """Return a finished run; a ValueError says where there is none, where it is not finished, or another recipe's."""
    if not (directory / RUN).is_file():
        raise ValueError(f"{directory} is no run directory; name one that `run` or `train` has filled")
    asked = json.loads((directory / RUN).read_text(encoding="utf-8"))["config"]
    if recipe is not None and asked.get("recipe") != recipe:
        raise ValueError(f"{directory} is a run of the recipe {asked.get('recipe')!r}; read it with that one")
    needed = ("summary.json", "arch.json", "model.safetensors")
    if missing := [name for name in needed if not (directory / name).is_file()]:
        raise ValueError(f"the run in {directory} is not finished, for it has no {missing[0]}; continue it first")
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    records = [record for record in Journal(directory / JOURNAL) if record.get("event") == "stage_done"]
    results = {record["stage"]: record["result"] for record in records}
    stages = read_stages(directory)
    last = [stage for stage in stages if stage.kind == "evaluation"][-1]
    for key, ordered in (
        ("networks", results[last.name]["networks"]),
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
        arch=Arch.from_json((directory / "arch.json").read_text(encoding="utf-8")),
    )


def report(directory: str | Path) -> Path:
    """Write the report of a finished run again, from its journal, and return its path; raises what `read_run` does."""
    return write_reports(Path(directory), read_run(Path(directory)))


def report_of(run: FinishedRun) -> Report:
    """Return what the HTML report shows."""
    summary, drawing = run.summary, run.summary["drawing"]
    reports = stage_reports(run.stages, run.results)
    told = " ".join(f"{key} {summary[key]}," for key in ("preset", "method") if key in summary)
    return Report(
        title=f"{drawing['title']} search: {told} seed {summary['seed']}",
        networks=network_rows(summary),
        stages=stage_rows(summary, reports),
        curves=tuple(curve for report in reports.values() for curve in report.curves),
        searches=tuple(report.history for report in reports.values() if report.history),
        rankings=tuple(report.ranking for report in reports.values() if report.ranking),
        blocks=tuple(BlockDrawing(b["title"], b["shade"], tuple(b["lines"])) for b in drawing["blocks"])
        or tuple(repeated_parts(run.arch)),
        config=run.config,
        split=run.split,
        versions=summary["versions"],
        seed=summary["seed"],
        shade_legend=drawing["legend"],
        metric=summary["metric"],
    )


def stage_reports(stages: Sequence[RecordedStage], results: Mapping[str, Any]) -> dict[str, StageReport]:
    """Return what reports show of each stage that is finished."""
    return {
        stage.name: REPORTS[stage.kind](stage.name, results[stage.name]) for stage in stages if stage.name in results
    }


def network_rows(summary: Mapping[str, Any]) -> tuple[NetworkRow, ...]:
    """Return the summary's networks as table rows."""
    named = summary["labels"]
    return tuple(
        NetworkRow(named.get(name, name), n["params"], n["macs"], n["val_score"], n["test_score"])
        for name, n in summary["networks"].items()
    )


def stage_rows(summary: Mapping[str, Any], reports: Mapping[str, StageReport]) -> tuple[StageRow, ...]:
    """Return the summary's stages as table rows."""
    return tuple(
        StageRow(name, stage["seconds"], reports[name].detail if name in reports else "")
        for name, stage in summary["stages"].items()
    )


def labels(problem: Problem[Any]) -> dict[str, str]:
    """Return what tables call the networks of a finished run."""
    named = {name: baseline.label for name, baseline in problem.baselines.items()}
    return {"searched": "searched", **named, "random": "random in the budget"}


def versions() -> dict[str, str]:
    """Return the versions of what a result can depend on."""
    found = {"nasx": nasx.__version__, "python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _summarised(network: Mapping[str, Any]) -> dict[str, Any]:
    return {key: network[key] for key in _SUMMARISED if key in network}


def _level(stage: str) -> str:
    return stage.rpartition("/")[0] or stage
