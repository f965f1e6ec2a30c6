"""The command line: `python -m recipes.localvit` searches on the embedded digits, `--help` lists the rest."""

import argparse
import sys

from nasx import Arch
from nasx.cli import DONE, bad_input, pick, print_json
from nasx.pipeline.commands import CommandLine, Recipe, read_arch


def _load() -> Recipe:
    from recipes.localvit.config import PRESETS
    from recipes.localvit.problem import LocalViTProblem
    from recipes.localvit.stages import plan_stages

    return Recipe(PRESETS, LocalViTProblem, plan_stages)


def _describe(options: argparse.Namespace) -> int:
    from recipes.localvit.config import PRESETS
    from recipes.localvit.cost import Macs, Params
    from recipes.localvit.model import LOCALVIT_TINY_ACT1, LOCALVIT_TINY_ACT3
    from recipes.localvit.space import locality

    known = {"localvit-tiny-act1": LOCALVIT_TINY_ACT1, "localvit-tiny-act3": LOCALVIT_TINY_ACT3}
    config = pick(options.preset, PRESETS, "preset")
    frame = config.frame(in_channels=1 if config.data.source == "digits" else 3, num_classes=options.classes)
    with bad_input():
        arch: Arch = locality(config.axes()).canonical(read_arch(options.arch, known))
    counts = {"params": Params(frame)(arch), "macs": Macs(frame)(arch)}
    blocks = [dict(part) for part in arch.parts("block")]
    if options.json:
        print_json({**counts, "blocks": blocks})
        return DONE
    print(f"{counts['params']:,} parameters, {counts['macs']:,} MACs")
    for i, block in enumerate(blocks):
        print(f"block {i:2}: {', '.join(f'{name} {value}' for name, value in block.items())}")
    return DONE


_line = CommandLine("localvit", "Search where a vision transformer's feed-forwards are local, and how.", _load)
_sub = _line.add("describe", _describe, "show a network block by block")
_sub.add_argument("--arch", required=True, help="localvit-tiny-act1, localvit-tiny-act3 or an arch.json")
_sub.add_argument("--preset", default="localvit-tiny", help="whose space and frame it has (localvit-tiny)")
_sub.add_argument("--classes", type=int, default=1000, help="number of classes (default 1000)")

parse, main = _line.parse, _line.main

if __name__ == "__main__":
    sys.exit(main())
