"""The paper's ablations (tables 1, 4, 5 and 6): each a list of rows, all run by the same stages as a search.

A row and a seed are a run directory of their own, below one directory that all tables may share: rows of different
tables that are the same run, such as the hierarchical search, are then run once.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as ConsoleTable

from nasx import Arch
from nasx.cli import DONE, INTERRUPTED, BadInput, apply_settings, bad_input, pick, print_json
from nasx.pipeline.commands import CommandLine, attempt
from nasx.pipeline.images import ImageSource, ImageTask, load_images
from nasx.pipeline.machine import Machine
from nasx.pipeline.progress import Progress, bars, silent
from nasx.pipeline.runner import check_stages, run
from nasx.pipeline.stages import EvaluationStage, Pick, RetrainStage, RunStage
from nasx.pipeline.vit import ViTProblem
from nasx.report import NetworkRow, percent, si
from nasx.run import write_json

from .config import Config
from .cost import PaperMacs
from .model import GLiTConfig
from .problem import glit_problem, hierarchical_stages, joint_stages, levels_of, random_stage
from .space import same_heads

Plan = Callable[[ViTProblem[Config]], list[RunStage]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table: the run that it reports, and what the paper has in its place.

    `run` names the directory; rows of one name are one run. `settings` are changes of the configuration, `plan` makes
    the stages, and `tested` names the one of them, `<tested>/test`, that the row shows. `paper` is the accuracy on
    ImageNet and the MACs in thousand millions where the paper has the row. `ours` is what the paper proposes.
    """

    label: str
    run: str
    plan: Plan
    tested: str
    settings: Sequence[str]
    paper: tuple[float, float | None] | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the paper: what it asks, and its rows for a configuration."""

    asks: str
    rows: Callable[[Config], Sequence[Row]]


def hierarchical(problem: ViTProblem[Config]) -> list[RunStage]:
    """Return both levels of the search, each with a test of its winner."""
    stages = hierarchical_stages(levels_of(problem), problem)
    last = next(number for number, stage in enumerate(stages) if stage.name == "heads/retrain")
    return [*stages[: last + 1], tested("heads"), *stages[last + 1 :], tested("details")]


def joint(problem: ViTProblem[Config], epochs_factor: float = 1) -> list[RunStage]:
    """Return one search of all choices at once."""
    return [*joint_stages(problem, epochs_factor), tested("joint")]


def drawn(problem: ViTProblem[Config]) -> list[RunStage]:
    """Return random search: as many networks as a search retrains, drawn from the budget."""
    return [random_stage(problem), tested("random")]


def same(problem: ViTProblem[Config], heads: int) -> list[RunStage]:
    """Return the training of the network that has the same heads in every block."""
    arch = same_heads(heads, problem.config.choices())
    return [RetrainStage("network/retrain", archs=(arch,), halving=False), tested("network")]


def tested(name: str) -> RunStage:
    """Return the stage that reads the test images for the winner of `<name>/retrain` alone."""
    return EvaluationStage(f"{name}/test", {"winner": Pick(f"{name}/retrain")})


def same_heads_row(config: Config, heads: int, paper: tuple[float, float | None] | None = None) -> Row:
    """Return the row of the network that has the same heads in every block, details held."""
    count = config.model.num_heads
    label = f"G {heads}, L {count - heads}" + (" (DeiT-shaped)" if heads == count else "")
    # a budget is no part of the question, and may leave nothing of a space that is never searched
    free = ("budget.heads_at_most=null", "budget.details_at_least=null", "budget.details_at_most=null")
    return Row(
        label=label,
        run=f"heads{heads}",
        plan=partial(same, heads=heads),
        tested="network",
        settings=("method=random", *free),
        paper=paper,
    )


def search_row(label: str, paper: tuple[float, float | None], tested: str = "details", ours: bool = True) -> Row:
    """Return the row of the hierarchical search, tested after one of its stages."""
    return Row(
        label=label,
        run="hierarchical",
        plan=hierarchical,
        tested=tested,
        settings=("method=hierarchical",),
        paper=paper,
        ours=ours,
    )


def table1(config: Config) -> Sequence[Row]:
    """Return table 1: every number of global heads, the same in all blocks."""
    paper = {3: 72.20, 2: 72.89, 1: 73.98, 0: 71.02} if config.model.num_heads == 3 else {}
    return [
        same_heads_row(config, heads, (paper[heads], None) if heads in paper else None)
        for heads in range(config.model.num_heads, -1, -1)
    ]


def table4(config: Config) -> Sequence[Row]:
    """Return table 4: what each level of the space adds, and the space of architecture search for language."""
    heads = config.model.num_heads
    return [
        same_heads_row(config, heads, (72.2, 1.3)),
        search_row("stage one only (heads)", (75.4, 1.4), tested="heads", ours=False),
        search_row("both stages", (76.3, 1.4)),
        Row(
            label="NLP space (q/k/v and MLP ratio)",
            run="nlp",
            plan=joint,
            tested="joint",
            settings=("method=spos", f"space.global_heads=[{heads}]"),
            paper=(73.4, 1.4),
        ),
    ]


def table5(config: Config) -> Sequence[Row]:
    """Return table 5: how the same space is searched."""
    return [
        search_row("hierarchical", (76.3, 1.4)),
        Row(
            label="SPOS, joint space, epochs doubled",
            run="spos",
            plan=partial(joint, epochs_factor=2),
            tested="joint",
            settings=("method=spos",),
            paper=(72.7, 0.9),
        ),
        Row(
            label=f"best of {config.search.top_k} random networks",
            run="random",
            plan=drawn,
            tested="random",
            settings=("method=random",),
            paper=(73.3, 1.3),
        ),
    ]


def table6(config: Config) -> Sequence[Row]:
    """Return table 6: what the local heads are; stage one holds the middle of their sizes."""
    vit = config.vit()
    sides, lengths = kernels(vit.grid), windows(vit.patches)
    return [
        Row(
            label=f"attention in windows of {_words(lengths)}",
            run="window",
            plan=hierarchical,
            tested="details",
            settings=(
                *("method=hierarchical", "space.locality=window", f"space.window={lengths}"),
                f"space.held_window={lengths[len(lengths) // 2]}",
            ),
            paper=(72.4, 1.4),
        ),
        Row(
            label=f"2-D convolution, {_words(f'{side}x{side}' for side in sides)}",
            run="conv2d",
            plan=hierarchical,
            tested="details",
            settings=(
                *("method=hierarchical", "space.locality=conv2d", f"space.kernel_size={sides}"),
                f"space.held_kernel_size={sides[(len(sides) - 1) // 2]}",
            ),
            paper=(76.4, 1.4),
        ),
        search_row("1-D convolution", (76.3, 1.4)),
    ]


TABLES: Mapping[str, Table] = {
    "table1": Table("How many heads should be local, if it is the same number in every block?", table1),
    "table4": Table("What does each level of the search space add?", table4),
    "table5": Table("Does searching stage by stage find better networks of the same space?", table5),
    "table6": Table("Which kind of locality should the local heads have?", table6),
}


def windows(patches: int) -> list[int]:
    """Return three windows that divide the patches: the largest up to a quarter of them, 14, 28 and 49 of 196.

    Where so many do not exist, the smallest above 1: 2, 4 and 8 of 16.
    """
    divisors = [size for size in range(2, patches) if patches % size == 0]
    end = max(3, sum(4 * size <= patches for size in divisors))
    return divisors[end - 3 : end]


def kernels(grid: int) -> list[int]:
    """Return those of the paper's kernels, 3, 5 and 7 wide, that do not show every patch the whole grid."""
    return [size for size in (3, 5, 7) if size < 2 * grid - 1]


def check(table: str, config: Config, data: Path | None, machine: Machine, seeds: Sequence[int] = (0,)) -> None:
    """Refuse, as ValueError, what no row of a table could do, before any of them is trained."""
    for seed in seeds:
        for problem in _problems(TABLES[table].rows(config), config, data, machine, seed).values():
            problem.check()
            check_stages(problem, machine)


def ablate(
    table: str,
    config: Config,
    data: Path | None,
    run_dir: Path,
    machine: Machine,
    show: Progress = silent,
    seeds: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Run a table, or what is missing of it, and return it as JSON values; accuracies in 0..1.

    `data` is the image folder, None for the digits. The document and the figure of accuracy over MACs are written to
    `<run_dir>/<table>.json` and `.svg`. Raises what `nasx.pipeline.run` does; after Interrupted the same call
    continues.
    """
    asked = TABLES[table]
    rows = asked.rows(config)
    results: dict[str, list[dict[str, Any]]] = {row.label: [] for row in rows}
    for seed in seeds:
        problems = _problems(rows, config, data, machine, seed)
        for row in rows:
            results[row.label].append(
                {"seed": seed, **_run(row, problems[row.label], run_dir / row.run / f"seed{seed}", machine, show)}
            )
    document = {
        "table": table,
        "asks": asked.asks,
        "preset": config.preset,
        "seeds": list(seeds),
        "rows": [
            {
                "label": row.label,
                "run": row.run,
                "ours": row.ours,
                "paper": dict(zip(("accuracy", "gmacs"), row.paper or (None, None), strict=True)),
                **{key: spread([network[key] for network in results[row.label]]) for key in _SPREAD},
                "networks": results[row.label],
            }
            for row in rows
        ],
    }
    _write(document, run_dir)
    return document


_SPREAD = ("test_accuracy", "val_accuracy", "params", "macs", "paper_macs")


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard deviation over seeds, the latter None for a single one."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def _problems(
    rows: Sequence[Row], config: Config, data: Path | None, machine: Machine, seed: int
) -> dict[str, ViTProblem[Config]]:
    seeded = config.model_copy(update={"seed": seed})
    loaded = load_images(ImageSource(seeded.data, seed, data, machine))  # no row changes the images
    problems = {}
    for row in rows:
        own = apply_settings(seeded, row.settings)
        task = ImageTask(loaded.dataset, own.data, source=loaded.source)
        problems[row.label] = glit_problem(own, task).with_stages(row.plan)
    return problems


def _run(row: Row, problem: ViTProblem[Config], directory: Path, machine: Machine, show: Progress) -> dict[str, Any]:
    def show_row(description: str, done: float, total: float, note: str = "") -> None:
        show(f"{row.run} seed {problem.config.seed}: {description}", done, total, note)

    found = run(problem, directory, machine=machine, progress=show_row, recorded={"ablation": row.run})
    network = found.tests[f"{row.tested}/test"]["winner"]
    kept = {key: network[key] for key in ("params", "macs", "val_accuracy", "test_accuracy", "arch")}
    seconds = sum(stage["seconds"] for stage in found.summary["stages"].values())
    assert isinstance(problem.vit, GLiTConfig)
    by_paper = PaperMacs(problem.vit)(Arch(network["arch"]))
    return {"seconds": round(seconds, 2), "paper_macs": by_paper, **kept}


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


def console_table(document: Mapping[str, Any]) -> ConsoleTable:
    """Return a table that `ablate` returned, beside what GLiT-Tiny has in the paper, for a terminal."""
    seeds = len(document["seeds"])
    title = f"{document['asks']} ({document['preset']}, {seeds} seed{'s' if seeds > 1 else ''})"
    table = ConsoleTable(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", min_width=22)
    for heading in ("parameters", "MACs", "test", "paper: Tiny"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["rows"]:
        table.add_row(
            row["label"],
            si(row["params"]["mean"]),
            si(row["macs"]["mean"]),
            mean_and_spread(row["test_accuracy"]),
            in_paper(row["paper"]),
            style="bold" if row["ours"] else "",
        )
    return table


def mean_and_spread(accuracy: Mapping[str, float | None]) -> str:
    """Return mean and standard deviation in percent."""
    mean, std = accuracy["mean"], accuracy["std"]
    return percent(mean) if std is None else f"{percent(mean)} ± {100 * std:.2f}"


def in_paper(paper: Mapping[str, float | None]) -> str:
    """Return the paper's accuracy on ImageNet in percent, with its MACs where it gives them."""
    if paper["accuracy"] is None:
        return ""
    return f"{paper['accuracy']:.1f} %" + (f", {paper['gmacs']} G" if paper["gmacs"] else "")


def seeds_of(text: str) -> tuple[int, ...]:
    """Return the seeds of a list such as "0,1,2"; a ValueError where they are not different whole numbers from 0."""
    try:
        seeds = tuple(int(word) for word in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds takes different whole numbers from 0 on, such as 0,1,2, but got {text!r}")
    return seeds


def command(line: CommandLine, options: argparse.Namespace) -> int:
    """Run the command `ablate` with the options `table`, `seeds` and `run_dir`; return its exit status."""
    pick(options.table, TABLES, "table")
    if options.method is not None:
        raise BadInput("the rows of a table choose their methods; remove --method")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("a table starts the processes that it needs itself; start it without torchrun")
    config = line.config(options)
    data = options.data.resolve() if options.data else None
    run_dir = options.run_dir or Path("runs") / f"glit-ablations-{config.preset}"
    errors = Console(stderr=True)
    with bad_input(), errors.status("counting architectures"):
        seeds = seeds_of(options.seeds) if options.seeds else (config.seed,)
        machine = Machine.from_environment()
        check(options.table, config, data, machine, seeds)

    def work() -> dict[str, Any]:
        with bars(errors) as show:
            return ablate(options.table, config, data, run_dir, machine, show, seeds)

    document = attempt(work, f"the table in {run_dir}")
    if document is None:
        return INTERRUPTED
    if options.json:
        print_json(document)
        return DONE
    console = Console()
    console.print(console_table(document))
    console.print(f"table and figure: {run_dir}/{options.table}.json and .svg", soft_wrap=True)
    return DONE


def _words(sizes: Iterable[object]) -> str:
    return ", ".join(map(str, sizes))
