"""What a finished run leaves beside its stages: summary, architecture, weights, picture and report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from nasx.arch import Arch
from nasx.recipe.problem import Problem
from nasx.recipe.stages import labels
from nasx.recipe.trust import ranking_plot
from nasx.report import Candidate, Curve, NetworkRow, Report, SearchHistory, StageRow
from nasx.run.files import write_bytes, write_json, write_text


def summarise(
    problem: Problem[Any], results: Mapping[str, Any], seconds: Mapping[str, float], versions: Mapping[str, str]
) -> dict[str, Any]:
    """Return what `summary.json` holds; accuracies in 0..1, MACs and parameters as plain counts."""
    keys = ("params", "macs", "val_accuracy", "test_accuracy", "arch")
    config = problem.config.model_dump()
    trust = {
        name.removesuffix("/trust"): result["verdict"] for name, result in results.items() if name.endswith("/trust")
    }
    return {
        "preset": config["preset"],
        **({"method": config["method"]} if "method" in config else {}),
        "seed": config["seed"],
        "networks": {name: {key: network[key] for key in keys} for name, network in results["evaluation"].items()},
        "stages": {name: {"seconds": round(spent, 2)} for name, spent in seconds.items()},
        "searches": {
            name: {key: result[key] for key in ("evaluations", "failed", "feasible_at_most")}
            for name, result in results.items()
            if name.endswith("/search")
        },
        **({"trust": trust} if trust else {}),
        "split": problem.task.dataset.split,
        "versions": dict(versions),
    }


def write_outcome(directory: Path, problem: Problem[Any], results: Mapping[str, Any], summary: dict[str, Any]) -> None:
    """Write summary.json, arch.json, model.safetensors, two figures as SVG and report.html into a run directory."""
    from nasx.report.figures import accuracy_over_cost, architecture, save_svg
    from nasx.report.html import write_report

    searched = results["evaluation"]["searched"]
    arch = problem.joint.canonical(searched["arch"])
    write_json(directory / "summary.json", summary)
    write_text(directory / "arch.json", arch.to_json())
    write_bytes(directory / "model.safetensors", save(load_file(directory / searched["weights"])))
    report = make_report(problem, results, summary, arch)
    save_svg(architecture(report.blocks, report.shade_legend), directory / "architecture.svg")
    save_svg(accuracy_over_cost(report.searches, report.networks), directory / "accuracy_over_macs.svg")
    write_report(directory / "report.html", report)


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
        rows.append(StageRow(name, stage["seconds"], detail))
    return tuple(rows)


def _curve(label: str, panel: str, losses: list[list[float]]) -> Curve:
    return Curve(label, tuple(int(step) for step, _ in losses), tuple(loss for _, loss in losses), panel)
