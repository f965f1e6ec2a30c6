"""The paper's ablations (tables 1, 4, 5 and 6): each a list of rows, all run by the same stages as a search."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nasx import Arch
from nasx.cli import BadInput, apply_settings, pick
from nasx.pipeline.ablation import Ablation, Row, ablate, tested
from nasx.pipeline.commands import CommandLine
from nasx.pipeline.image_sources import ImageSource, load_images
from nasx.pipeline.images import ImageTask
from nasx.pipeline.machine import Machine
from nasx.pipeline.network_stages import RetrainStage
from nasx.pipeline.stages import RunStage
from nasx.pipeline.vit import ViTProblem

from .config import Config
from .cost import PaperMacs
from .problem import glit_problem, hierarchical_stages, joint_stages, levels_of, random_stage
from .space import same_heads


class Table(NamedTuple):
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


def ablation(table: str, config: Config, data: Path | None, machine: Machine) -> Ablation:
    """Return a table of the paper for a configuration; `data` is the image folder, None for the digits."""

    def problem(row: Row, seed: int) -> ViTProblem[Config]:
        seeded = config.model_copy(update={"seed": seed})
        loaded = load_images(ImageSource(seeded.data, seed, data, machine))  # no row changes the images
        own = apply_settings(seeded, row.settings)
        return glit_problem(own, ImageTask(loaded.dataset, own.data, source=loaded.source))

    def facts(problem: Any, arch: Arch) -> Mapping[str, float]:
        return {"paper_macs": PaperMacs(problem.vit)(arch)}

    asked = TABLES[table]
    return Ablation(
        name=table, asks=asked.asks, preset=config.preset, rows=asked.rows(config), problem=problem, facts=facts
    )


def command(line: CommandLine, options: argparse.Namespace) -> int:
    """Run the command `ablate` with the options `table`, `seeds` and `run_dir`; return its exit status."""
    pick(options.table, TABLES, "table")
    if options.method is not None:
        raise BadInput("the rows of a table choose their methods; remove --method")
    return ablate(line, options, "glit", partial(ablation, options.table))


def _words(sizes: Iterable[object]) -> str:
    return ", ".join(map(str, sizes))
