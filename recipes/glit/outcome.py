"""What a finished run leaves beside its stages: summary, architecture, weights, picture and report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from nasx import Arch
from nasx.report import Candidate, Curve, NetworkRow, Report, SearchHistory, StageRow
from nasx.run.files import write_bytes, write_json, write_text
from recipes.glit.picture import block_drawings
from recipes.glit.problem import Problem

LABELS = {"searched": "searched", "deit_shaped": "DeiT-shaped (all heads global)", "random": "random in the budget"}


def summarise(
    problem: Problem, results: Mapping[str, Any], seconds: Mapping[str, float], versions: Mapping[str, str]
) -> dict[str, Any]:
    """Return what `summary.json` holds; accuracies in 0..1, MACs and parameters as plain counts."""
    keys = ("params", "macs", "val_accuracy", "test_accuracy", "arch")
    return {
        "preset": problem.config.preset,
        "method": problem.config.method,
        "seed": problem.config.seed,
        "networks": {name: {key: network[key] for key in keys} for name, network in results["evaluation"].items()},
        "stages": {name: {"seconds": round(spent, 2)} for name, spent in seconds.items()},
        "searches": {
            name: {key: result[key] for key in ("evaluations", "feasible_at_most")}
            for name, result in results.items()
            if name.endswith("/search")
        },
        "split": problem.dataset.split,
        "versions": dict(versions),
    }


def write_outcome(directory: Path, problem: Problem, results: Mapping[str, Any], summary: dict[str, Any]) -> None:
    """Write summary.json, arch.json, model.safetensors, architecture.svg and report.html into a run directory."""
    from nasx.report.figures import architecture, svg_text
    from nasx.report.html import write_report

    searched = results["evaluation"]["searched"]
    arch = problem.joint_space.canonical(searched["arch"])
    write_json(directory / "summary.json", summary)
    write_text(directory / "arch.json", arch.to_json())
    write_bytes(directory / "model.safetensors", save(load_file(directory / searched["weights"])))
    report = make_report(problem, results, summary, arch)
    write_text(directory / "architecture.svg", svg_text(architecture(report.blocks, report.shade_legend)))
    write_report(directory / "report.html", report)


def make_report(problem: Problem, results: Mapping[str, Any], summary: Mapping[str, Any], arch: Arch) -> Report:
    """Return what the HTML report shows."""
    curves, searches = [], []
    for name, result in results.items():
        if name.endswith("/supernet"):
            curves.append(_curve(name, "supernets", result["losses"]))
        elif name.endswith("/search"):
            candidates = tuple(Candidate(generation, cost, score) for generation, cost, score in result["candidates"])
            searches.append(SearchHistory(name, candidates))
        elif name.endswith("/retrain"):
            curves += [_curve(f"candidate {i}", name, n["losses"]) for i, n in enumerate(result["networks"])]
    return Report(
        title=f"GLiT search: {problem.config.preset}, {problem.config.method}, seed {problem.config.seed}",
        networks=network_rows(summary),
        stages=stage_rows(summary),
        curves=tuple(curves),
        searches=tuple(searches),
        blocks=block_drawings(arch, problem.config.model.num_heads),
        config=problem.config.model_dump(),
        split=problem.dataset.split,
        versions=summary["versions"],
        seed=problem.config.seed,
        shade_legend="darker: more local heads; G global (attention) and L local (convolution) heads per block",
    )


def network_rows(summary: Mapping[str, Any]) -> tuple[NetworkRow, ...]:
    """Return the summary's networks as table rows."""
    return tuple(
        NetworkRow(LABELS[name], n["params"], n["macs"], n["val_accuracy"], n["test_accuracy"])
        for name, n in summary["networks"].items()
    )


def stage_rows(summary: Mapping[str, Any]) -> tuple[StageRow, ...]:
    """Return the summary's stages as table rows."""
    rows = []
    for name, stage in summary["stages"].items():
        search = summary["searches"].get(name)
        detail = f"{search['evaluations']} of at most {int(search['feasible_at_most']):,} candidates" if search else ""
        rows.append(StageRow(name, stage["seconds"], detail))
    return tuple(rows)


def _curve(label: str, panel: str, losses: list[list[float]]) -> Curve:
    return Curve(label, tuple(int(step) for step, _ in losses), tuple(loss for _, loss in losses), panel)
