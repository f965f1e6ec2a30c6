"""The command line: `python -m recipes.autoformer` searches on the embedded digits, `--help` lists the rest."""

import argparse
import sys

from nasx import Arch
from nasx.cli import DONE, bad_input, pick, print_json
from nasx.pipeline.commands import CommandLine, Recipe, read_arch


def _load() -> Recipe:
    from recipes.autoformer.config import PRESETS
    from recipes.autoformer.problem import AutoFormerProblem
    from recipes.autoformer.stages import plan_stages

    return Recipe(PRESETS, AutoFormerProblem, plan_stages)


def _describe(options: argparse.Namespace) -> int:
    from recipes.autoformer.config import PRESETS
    from recipes.autoformer.cost import Macs, Params

    config = pick(options.preset, PRESETS, "preset")
    frame = config.frame(in_channels=1 if config.data.source == "digits" else 3, num_classes=options.classes)
    with bad_input():
        arch: Arch = config.axes().space().canonical(read_arch(options.arch))
    counts = {"params": Params(frame)(arch), "macs": Macs(frame)(arch)}
    blocks = [dict(part) for part in arch.parts("block")]
    if options.json:
        print_json({**counts, "embed_dim": arch["embed_dim"], "blocks": blocks})
        return DONE
    print(f"width {arch['embed_dim']}, {counts['params']:,} parameters, {counts['macs']:,} MACs")
    for i, block in enumerate(blocks):
        print(f"block {i:2}: {block['num_heads']} heads, MLP ratio {block['mlp_ratio']:g}")
    return DONE


_line = CommandLine("autoformer", "Search the sizes of a vision transformer.", _load)
_sub = _line.add("describe", _describe, "show a network block by block")
_sub.add_argument("--arch", required=True, help="an arch.json")
_sub.add_argument("--preset", default="autoformer-tiny", help="whose space and frame it has (autoformer-tiny)")
_sub.add_argument("--classes", type=int, default=1000, help="number of classes (default 1000)")

parse, main = _line.parse, _line.main

if __name__ == "__main__":
    sys.exit(main())
