"""The command line: `python -m recipes.glit` runs the main job, `--help` lists the rest."""

import argparse
import sys
from pathlib import Path
from typing import Any

from nasx.cli import DONE, bad_input, check_counts, pick, print_json
from nasx.pipeline.commands import CommandLine
from nasx.pipeline.network_commands import NetworkCommands
from nasx.pipeline.outputs import check_output

METHODS = ("hierarchical", "spos", "random")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", help=f"{METHODS[0]} (default), {METHODS[1]} or {METHODS[2]}")


def _choose(config: Any, options: argparse.Namespace) -> Any:
    if options.method is None:
        return config
    pick(options.method, dict.fromkeys(METHODS), "method")
    return config.model_copy(update={"method": options.method})


def _ablate(options: argparse.Namespace) -> int:
    with bad_input():  # the extra that recipes need may be missing
        from . import ablations
    return ablations.command(LINE, options)


def _heatmaps(options: argparse.Namespace) -> int:
    with bad_input():
        from nasx.report.figures import FORMATS, save_figure

        from .heatmaps import heat_maps_of_run

        check_counts({"--count": options.count})
        check_output(options.out, "--out", tuple(FORMATS))
        save_figure(heat_maps_of_run(options.run, options.data, options.count), options.out)
    print_json({"figure": str(options.out)}) if options.json else print(f"figure: {options.out}")
    return DONE


LINE = CommandLine(
    __package__,
    "Search a GLiT network.",
    presets=("digits", "cifar10", "folder", "glit-tiny", "glit-small", "glit-base"),
    configure=_configure,
    choose=_choose,
)
NetworkCommands(LINE, ("glit-tiny", "deit-tiny", "deit-small", "deit-base"), alone=("timm:NAME",))

_sub = LINE.configured("ablate", _ablate, "run one of the paper's tables")
_sub.add_argument("table", metavar="TABLE", help="table1, table4, table5 or table6")
_sub.add_argument("--seeds", help="several seeds, such as 0,1,2 (default: --seed)")
_sub.add_argument("--run-dir", type=Path, help="default: runs/glit-ablations-PRESET")

_sub = LINE.add("heatmaps", _heatmaps, "draw where a finished run's networks look (paper, figure 6)")
_sub.add_argument("run", type=Path, metavar="RUN", help="the run directory")
_sub.add_argument("--data", type=Path, help="the run's image folder")
_sub.add_argument("--count", type=int, default=8, help="images, of different classes (default 8)")
_sub.add_argument("--out", type=Path, required=True, metavar="FILE.svg", help="the figure")

parse, main = LINE.parse, LINE.main

if __name__ == "__main__":
    sys.exit(main())
