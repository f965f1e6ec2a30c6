"""Ablations: tables whose rows are runs, with one or several seeds, beside what a paper reports of them.

A row and a seed are a run directory of their own, below one directory that all tables may share: rows of different
tables that are the same run are then run once.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from nasx.arch import Arch
from nasx.cli import DONE, INTERRUPTED, BadInput, bad_input, print_json
from nasx.pipeline.changes import finished_stages
from nasx.pipeline.checks import check_run
from nasx.pipeline.commands import CommandLine, attempt
from nasx.pipeline.machine import Machine
from nasx.pipeline.network_stages import EvaluationStage
from nasx.pipeline.picks import Pick
from nasx.pipeline.problem import Problem
from nasx.pipeline.progress import Progress, bars, silent
from nasx.pipeline.runner import run
from nasx.pipeline.stages import RunStage
from nasx.report import NetworkRow, percent, si
from nasx.run import write_json

__all__ = ["Ablation", "Row", "ablate", "console_table", "seeds_of", "tested"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table: the run that it reports, and what the paper has in its place.

    `run` names the directory; rows of one name are one run. `settings` are changes of the configuration, `plan` makes
    the stages, and `tested` names the one of them, `<tested>/test`, that the row shows. `paper` is the accuracy in
    percent and the MACs in thousand millions where the paper has the row. `ours` is what the paper proposes.
    """

    label: str
    run: str
    plan: Callable[[Any], list[RunStage]]
    tested: str
    settings: Sequence[str] = ()
    paper: tuple[float, float | None] | None = None
    ours: bool = False


def tested(name: str) -> RunStage:
    """Return the stage that reads the test samples for the winner of `<name>/retrain` alone."""
    return EvaluationStage(f"{name}/test", {"winner": Pick(f"{name}/retrain")})


def _no_facts(problem: Problem[Any], arch: Arch) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A table: its `name`, what it `asks`, its rows, and the `problem(row, seed)` that a row poses with a seed.

    `facts(problem, arch)` are further numbers of a row's network.
    """

    name: str
    asks: str
    preset: str
    rows: Sequence[Row]
    problem: Callable[[Row, int], Problem[Any]]
    facts: Callable[[Problem[Any], Arch], Mapping[str, float]] = _no_facts

    def check(self, run_dir: Path, machine: Machine, seeds: Sequence[int] = (0,)) -> None:
        """Refuse, as ValueError, what no row could do, before any of them is trained."""
        for seed in seeds:
            for row in self.rows:
                finished = finished_stages(_directory(run_dir, row, seed))
                check_run(self._staged(row, seed), machine, finished=finished)

    def run(
        self, run_dir: Path, machine: Machine, show: Progress = silent, seeds: Sequence[int] = (0,)
    ) -> dict[str, Any]:
        """Run the table, or what is missing of it, and return it as JSON values; accuracies in 0..1.

        The document and the figure of accuracy over MACs are written to `<run_dir>/<name>.json` and `.svg`. Raises what
        `nasx.pipeline.run` does; after Interrupted the same call continues.
        """
        networks: dict[str, list[dict[str, Any]]] = {row.label: [] for row in self.rows}
        for seed in seeds:
            for row in self.rows:
                found = self._network(row, seed, _directory(run_dir, row, seed), machine, show)
                networks[row.label].append({"seed": seed, **found})
        document = {
            "table": self.name,
            "asks": self.asks,
            "preset": self.preset,
            "seeds": list(seeds),
            "rows": [{**_described(row), **_spreads(networks[row.label])} for row in self.rows],
        }
        _write(document, run_dir)
        return document

    def _staged(self, row: Row, seed: int) -> Problem[Any]:
        return self.problem(row, seed).with_stages(row.plan)

    def _network(self, row: Row, seed: int, directory: Path, machine: Machine, show: Progress) -> dict[str, Any]:
        def show_row(description: str, done: float, total: float, note: str = "") -> None:
            show(f"{row.run} seed {seed}: {description}", done, total, note)

        problem = self._staged(row, seed)
        found = run(problem, directory, machine=machine, progress=show_row, recorded={"ablation": row.run})
        network = found.tests[f"{row.tested}/test"]["winner"]
        seconds = sum(stage["seconds"] for stage in found.summary["stages"].values())
        kept = {key: network[key] for key in ("params", "macs", "val_accuracy", "test_accuracy", "arch")}
        return {"seconds": round(seconds, 2), **self.facts(problem, Arch(network["arch"])), **kept}


def _directory(run_dir: Path, row: Row, seed: int) -> Path:
    return run_dir / row.run / f"seed{seed}"


def _described(row: Row) -> dict[str, Any]:
    paper = dict(zip(("accuracy", "gmacs"), row.paper or (None, None), strict=True))
    return {"label": row.label, "run": row.run, "ours": row.ours, "paper": paper}


def _spreads(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return every number's mean and standard deviation over seeds (None of a single one), and the networks."""
    numbers = [key for key in networks[0] if key not in ("seed", "seconds", "arch")]
    columns = {key: [network[key] for network in networks] for key in numbers}
    spreads = {
        key: {"mean": statistics.fmean(column), "std": statistics.stdev(column) if len(column) > 1 else None}
        for key, column in columns.items()
    }
    return {**spreads, "networks": list(networks)}


def _write(document: Mapping[str, Any], run_dir: Path) -> None:
    from nasx.report.figures import accuracy_over_cost, save_svg

    write_json(run_dir / f"{document['table']}.json", dict(document))
    rows = sorted(document["rows"], key=lambda row: not row["ours"])  # the star is the first
    networks = [
        NetworkRow(row["label"], None, round(row["macs"]["mean"]), test_accuracy=row["test_accuracy"]["mean"])
        for row in rows
    ]
    published = [
        NetworkRow(row["label"], None, round(1e9 * row["paper"]["gmacs"]), test_accuracy=row["paper"]["accuracy"] / 100)
        for row in rows
        if row["paper"]["gmacs"]
    ]
    figure = accuracy_over_cost(networks, published=published, star=rows[0]["ours"])
    save_svg(figure, run_dir / f"{document['table']}.svg")


def console_table(document: Mapping[str, Any]) -> Table:
    """Return a table that was run, beside the paper's numbers, for a terminal."""
    seeds = len(document["seeds"])
    title = f"{document['asks']} ({document['preset']}, {seeds} seed{'s' if seeds > 1 else ''})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", min_width=22)
    for heading in ("parameters", "MACs", "test", "paper"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["rows"]:
        mean, std = row["test_accuracy"]["mean"], row["test_accuracy"]["std"]
        accuracy, gmacs = row["paper"]["accuracy"], row["paper"]["gmacs"]
        table.add_row(
            row["label"],
            si(row["params"]["mean"]),
            si(row["macs"]["mean"]),
            percent(mean) if std is None else f"{percent(mean)} ± {100 * std:.2f}",
            "" if accuracy is None else f"{accuracy:.1f} %" + (f", {gmacs} G" if gmacs else ""),
            style="bold" if row["ours"] else "",
        )
    return table


def seeds_of(text: str) -> tuple[int, ...]:
    """Return the seeds of a list such as "0,1,2"; a ValueError where they are not different whole numbers from 0."""
    try:
        seeds = tuple(int(word) for word in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds takes different whole numbers from 0 on, such as 0,1,2, but got {text!r}")
    return seeds


def ablate(
    line: CommandLine,
    options: argparse.Namespace,
    recipe: str,
    ablation: Callable[[Any, Path | None, Machine], Ablation],
) -> int:
    """Run a command with the options `seeds` and `run_dir` for `ablation(config, data, machine)`; return its status."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("a table starts the processes that it needs itself; start it without torchrun")
    config = line.config(options)
    data = options.data.resolve() if options.data else None
    run_dir = options.run_dir or Path("runs") / f"{recipe}-ablations-{config.preset}"
    errors = Console(stderr=True)
    with bad_input(), errors.status("counting architectures"):
        seeds = seeds_of(options.seeds) if options.seeds is not None else (config.seed,)
        machine = Machine.from_environment()
        table = ablation(config, data, machine)
        table.check(run_dir, machine, seeds)

    def work() -> dict[str, Any]:
        with bars(errors) as show:
            return table.run(run_dir, machine, show, seeds)

    document = attempt(work, f"the table in {run_dir}")
    if document is None:
        return INTERRUPTED
    if options.json:
        print_json(document)
        return DONE
    console = Console()
    console.print(console_table(document))
    console.print(f"table and figure: {run_dir}/{table.name}.json and .svg", soft_wrap=True)
    return DONE
