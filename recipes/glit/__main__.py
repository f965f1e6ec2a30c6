"""The command line: `python -m recipes.glit` runs the main job, `--help` lists the rest."""

import argparse
import sys
from typing import Any

from nasx.cli import bad_input, pick, print_json
from nasx.recipe.commands import CommandLine, Recipe, read_arch


def _load() -> Recipe:
    from recipes.glit.config import PRESETS
    from recipes.glit.problem import GLiTProblem
    from recipes.glit.stages import plan_stages

    return Recipe(PRESETS, GLiTProblem, plan_stages)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", help="hierarchical (default), spos or random")


def _choose(config: Any, options: argparse.Namespace) -> Any:
    from recipes.glit.config import METHODS

    if options.method is None:
        return config
    pick(options.method, dict.fromkeys(METHODS), "method")
    return config.model_copy(update={"method": options.method})


def _describe(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from recipes.glit.config import PRESETS
    from recipes.glit.cost import Macs, PaperMacs, Params
    from recipes.glit.model import DEIT_TINY, GLIT_TINY, Frame
    from recipes.glit.space import TINY, table2

    known = {"glit-tiny": GLIT_TINY, "deit-tiny": DEIT_TINY}
    axes, frame, variant = TINY, Frame(), "official"
    if options.preset:
        config = pick(options.preset, PRESETS, "preset")
        channels, variant = 1 if config.data.source == "digits" else 3, config.model.variant
        axes, frame = config.axes(), config.frame(in_channels=channels, num_classes=options.classes)
    arch = read_arch(options.arch, known)
    with bad_input():
        arch = table2(axes).canonical(arch)
        counts = {"params": Params(frame)(arch), "macs": Macs(frame)(arch), "paper_macs": PaperMacs(frame)(arch)}
    blocks = [dict(part) for part in arch.parts("block")]
    computed = {"variant": variant, "locality": axes.locality}
    if options.json:
        print_json({**counts, **computed, "blocks": blocks})
        return 0
    names = ["global_heads", *axes.all_details]
    table = Table("block", *names, title=options.arch)
    for i, block in enumerate(blocks):
        table.add_row(str(i), *(str(block.get(name, "")) for name in names))
    console = Console()
    console.print(table)
    console.print(f"variant {variant}, locality {axes.locality}")
    console.print(
        f"{counts['params']:,} parameters, {counts['macs']:,} MACs ({counts['paper_macs']:,} by the paper's count)"
    )
    return 0


_line = CommandLine("glit", "Search a GLiT network.", _load, configure=_configure, choose=_choose)
_sub = _line.add("describe", _describe, "show a network block by block")
_sub.add_argument("--arch", required=True, help="glit-tiny, deit-tiny or an arch.json")
_sub.add_argument("--preset", help="the preset whose space and frame it has (default: GLiT-Tiny on ImageNet)")
_sub.add_argument("--classes", type=int, default=10, help="with --preset: number of classes (default 10)")

parse, main = _line.parse, _line.main

if __name__ == "__main__":
    sys.exit(main())
