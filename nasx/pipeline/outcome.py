"""What a finished run leaves beside its stages: summary, architecture, weights, picture and report; reading it back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from nasx.arch import Arch
from nasx.pipeline.problem import Problem
from nasx.pipeline.stages import labels
from nasx.pipeline.training import read_weights
from nasx.pipeline.trust import ranking_plot
from nasx.report import Candidate, Curve, NetworkRow, Report, SearchHistory, StageRow
from nasx.run import Journal
from nasx.run.checkpoints import Checkpoints, unflatten_state
from nasx.run.files import write_bytes, write_json, write_text
from nasx.run.stages import CHECKPOINTS, JOURNAL, RUN


def summarise(
    problem: Problem[Any], results: Mapping[str, Any], seconds: Mapping[str, float], versions: Mapping[str, str]
) -> dict[str, Any]:
    """Return what `summary.json` holds; accuracies in 0..1, MACs and parameters as plain counts."""
    keys = ("params", "macs", "val_accuracy", "test_accuracy", "arch")
    config, (mean, std) = problem.config.model_dump(), problem.task.statistics
    trust = {
        name.removesuffix("/trust"): result["verdict"] for name, result in results.items() if name.endswith("/trust")
    }
    return {
        "preset": config["preset"],
        **({"method": problem.config.search_method} if problem.config.search_method else {}),
        "seed": config["seed"],
        "networks": {name: {key: network[key] for key in keys} for name, network in results["evaluation"].items()},
        "stages": {name: {"seconds": round(spent, 2)} for name, spent in seconds.items()},
        "searches": {
            name: {key: value for key, value in result.items() if key not in ("best", "candidates")}
            for name, result in results.items()
            if name.endswith("/search")
        },
        **({"trust": trust} if trust else {}),
        "normalisation": {"mean": list(mean), "std": list(std)},
        "split": problem.task.dataset.split,
        "versions": dict(versions),
    }


def write_outcome(directory: Path, problem: Problem[Any], results: Mapping[str, Any], summary: dict[str, Any]) -> None:
    """Write summary.json, arch.json, model.safetensors, two figures as SVG and report.html into a run directory."""
    from nasx.report.figures import accuracy_over_cost, architecture, save_svg
    from nasx.report.html import write_report

    winner = next(iter(results["evaluation"].values()))  # what was searched comes first
    arch = problem.joint.canonical(winner["arch"])
    write_json(directory / "summary.json", summary)
    write_text(directory / "arch.json", arch.to_json())
    write_bytes(directory / "model.safetensors", save(read_weights(directory / winner["weights"], winner["sha256"])))
    report = make_report(problem, results, summary, arch)
    save_svg(architecture(report.blocks, report.shade_legend), directory / "architecture.svg")
    save_svg(accuracy_over_cost(report.searches, report.networks), directory / "accuracy_over_macs.svg")
    write_report(directory / "report.html", report)


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run, read back: what it was asked for, the stages' results, the summary and the network it found.

    `asked` is what a command recorded beside the configuration, such as the architecture that it trained.
    """

    directory: Path
    recipe: str
    asked: Mapping[str, Any]
    config: Mapping[str, Any]
    split: Mapping[str, Any]
    results: Mapping[str, Any]
    summary: Mapping[str, Any]
    arch: Arch

    @property
    def weights(self) -> Path:
        """The file of the network's weights."""
        return self.directory / "model.safetensors"

    def supernet(self, stage: str) -> dict[str, Any] | None:
        """Return the state dict of the supernet that a stage trained, or None where there is none any more."""
        if stage not in self.results:
            return None
        checkpoint = Checkpoints(self.directory / stage / CHECKPOINTS, identity=stage).latest()
        if checkpoint is None or checkpoint.step != self.results[stage]["steps"]:
            return None
        state: dict[str, Any] = unflatten_state(checkpoint.tensors, checkpoint.state)["supernet"]
        return state


def read_run(directory: Path, recipe: str) -> Finished:
    """Return a recipe's finished run; a ValueError says where there is none, or where it is not finished."""
    if not (directory / RUN).is_file():
        raise ValueError(f"{directory} is no run directory; name one that `run` or `train` has filled")
    asked = json.loads((directory / RUN).read_text())["config"]
    if asked.get("recipe") != recipe:
        raise ValueError(f"{directory} is a run of the recipe {asked.get('recipe')!r}; read it with that one")
    needed = ("summary.json", "arch.json", "model.safetensors")
    if missing := [name for name in needed if not (directory / name).is_file()]:
        raise ValueError(f"the run in {directory} is not finished, for it has no {missing[0]}; continue it first")
    summary = json.loads((directory / "summary.json").read_text())
    records = [record for record in Journal(directory / JOURNAL) if record.get("event") == "stage_done"]
    results = {record["stage"]: record["result"] for record in records}
    for key, ordered in (("networks", results["evaluation"]), ("stages", results)):  # the file's keys are sorted
        summary[key] = {name: summary[key][name] for name in ordered}
    return Finished(
        directory=directory,
        recipe=recipe,
        asked={key: value for key, value in asked.items() if key not in ("recipe", "config", "split")},
        config=asked["config"],
        split=asked["split"],
        results=results,
        summary=summary,
        arch=Arch.from_json((directory / "arch.json").read_text()),
    )


def make_report(problem: Problem[Any], results: Mapping[str, Any], summary: Mapping[str, Any], arch: Arch) -> Report:
    """Return what the HTML report shows."""
    curves, searches, rankings = [], [], []
    for name, result in results.items():
        if name.endswith("/supernet"):
            curves.append(_curve(name, "supernets", result["losses"]))
        elif name.endswith("/search"):
            candidates = tuple(Candidate(generation, cost, score) for generation, cost, score in result["candidates"])
            searches.append(SearchHistory(name, candidates))
        elif name.endswith(("/retrain", "/finetune")):
            curves += [_curve(f"candidate {i}", name, n["losses"]) for i, n in enumerate(result["networks"])]
        elif name.endswith("/trust"):
            rankings.append(ranking_plot(name, result))
    told = " ".join(f"{key} {summary[key]}," for key in ("preset", "method") if key in summary)
    return Report(
        title=f"{problem.title} search: {told} seed {summary['seed']}",
        networks=network_rows(problem, summary),
        stages=stage_rows(summary),
        curves=tuple(curves),
        searches=tuple(searches),
        rankings=tuple(rankings),
        blocks=tuple(problem.drawings(arch)),
        config=problem.config.model_dump(),
        split=problem.task.dataset.split,
        versions=summary["versions"],
        seed=summary["seed"],
        shade_legend=problem.drawing_legend,
    )


def network_rows(problem: Problem[Any], summary: Mapping[str, Any]) -> tuple[NetworkRow, ...]:
    """Return the summary's networks as table rows."""
    named = labels(problem)
    return tuple(
        NetworkRow(named.get(name, name), n["params"], n["macs"], n["val_accuracy"], n["test_accuracy"])
        for name, n in summary["networks"].items()
    )


def stage_rows(summary: Mapping[str, Any]) -> tuple[StageRow, ...]:
    """Return the summary's stages as table rows."""
    rows = []
    for name, stage in summary["stages"].items():
        search = summary["searches"].get(name)
        detail = f"{search['evaluations']} of at most {int(search['feasible_at_most']):,} candidates" if search else ""
        if search and search["failed"]:
            detail += f", {search['failed']} failed"
        if search and search.get("acceptance", 1) < 1:  # earlier runs did not tell
            detail += f"; {search['acceptance']:.2%} of the draws met every budget"
        if search and search.get("racing_error"):
            share = search["validation_images"] / search["validation_images_in_full"]
            risk = f"{search['racing_error']:.0%} risk a generation"
            detail += f"; racing took {share:.0%} of the validation images at {risk}"
        rows.append(StageRow(name, stage["seconds"], detail))
    return tuple(rows)


def _curve(label: str, panel: str, losses: list[list[float]]) -> Curve:
    return Curve(label, tuple(int(step) for step, _ in losses), tuple(loss for _, loss in losses), panel)
