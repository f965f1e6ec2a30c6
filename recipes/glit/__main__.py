"""The command line: `python -m recipes.glit` runs the main job, `--help` lists the rest."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nasx.cli import bad_input, pick
from nasx.pipeline.commands import CommandLine, Recipe


def _load() -> Recipe:
    from recipes.glit.config import PRESETS
    from recipes.glit.problem import GLiTProblem
    from recipes.glit.stages import plan_stages

    return Recipe(PRESETS, GLiTProblem, plan_stages, _recorded)


def _recorded(config: Any, task: Any, asked: Mapping[str, Any]) -> Any:
    from recipes.glit.commands import problem_of

    return problem_of(config, task, asked.get("arch", {}))


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", help="hierarchical (default), spos or random")


def _choose(config: Any, options: argparse.Namespace) -> Any:
    from recipes.glit.config import METHODS

    if options.method is None:
        return config
    pick(options.method, dict.fromkeys(METHODS), "method")
    return config.model_copy(update={"method": options.method})


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command that is imported when it is called."""

    def command(options: argparse.Namespace) -> int:
        with bad_input():  # the extra that recipes need may be missing
            from recipes.glit import commands
        run: Callable[[argparse.Namespace], int] = getattr(commands, name)
        return run(options)

    return command


def _train(options: argparse.Namespace) -> int:
    with bad_input():
        from recipes.glit import commands
    return commands.train(_line, options)


def _ablate(options: argparse.Namespace) -> int:
    with bad_input():
        from recipes.glit import ablations
    return ablations.command(_line, options)


_ARCH = "glit-tiny, deit-tiny, deit-small, deit-base or an arch.json"
_line = CommandLine("glit", "Search a GLiT network.", _load, configure=_configure, choose=_choose)


def _add_preset(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--preset", help="the preset whose space and frame it has (default: that of the network's size)")
    sub.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change a field of it")


_sub = _line.add("describe", _command("describe"), "show a network block by block")
_sub.add_argument("--arch", required=True, help=_ARCH)
_add_preset(_sub)
_sub.add_argument("--classes", type=int, help="number of classes (default: that of the preset's data)")
_sub.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw it as well (paper, figure 5)")

_sub = _line.configured("train", _train, "train one network alone with the preset's retraining, or continue")
_sub.add_argument("--arch", required=True, help=f"{_ARCH}, or timm:NAME for a network of timm")
_sub.add_argument("--run-dir", type=Path, help="default: runs/glit-PRESET-ARCH-seedSEED")

_sub = _line.add("evaluate", _command("evaluate_command"), "accuracy on the test images")
_sub.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run directory, or an exported network")
_sub.add_argument("--weights", type=Path, help="a weights file instead")
_sub.add_argument("--arch", help=f"its network, where the file does not say: {_ARCH}, or timm:NAME")
_add_preset(_sub)
_sub.add_argument("--data", type=Path, help="image folder with train/<class>/* and test/ or val/")

_sub = _line.add("import-official", _command("import_official"), "read a published checkpoint of GLiT, DeiT or timm")
_sub.add_argument("file", type=Path, metavar="FILE", help="a torch checkpoint or safetensors; nothing in it is run")
_sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where weights and model card go")
_sub.add_argument("--classes", type=int, help="another number of classes: a new head")
_sub.add_argument("--image-size", type=int, metavar="PIXELS", help="another image size: positions are interpolated")

_sub = _line.add("export", _command("export"), "write a network with its model card")
_sub.add_argument("source", type=Path, metavar="RUN", help="a run directory, or a network exported or imported before")
_sub.add_argument("--format", choices=("safetensors", "onnx"), default="safetensors")
_sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")

_sub = _line.add("verify", _command("verify_command"), "prove that supernet, network, weights and costs agree")
_sub.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run directory")
_sub.add_argument("--arch", help=f"a network instead: {_ARCH}")
_add_preset(_sub)
_sub.add_argument("--classes", type=int, help="number of classes (default: that of the preset's data)")
_sub.add_argument("--onnx", action="store_true", help="compare with ONNX as well")

_sub = _line.configured("ablate", _ablate, "run one of the paper's tables")
_sub.add_argument("table", metavar="TABLE", help="table1, table4, table5 or table6")
_sub.add_argument("--seeds", help="several seeds, such as 0,1,2 (default: --seed)")
_sub.add_argument("--run-dir", type=Path, help="default: runs/glit-ablations-PRESET")

_sub = _line.add("heatmaps", _command("heatmaps"), "draw where a finished run's networks look (paper, figure 6)")
_sub.add_argument("run", type=Path, metavar="RUN", help="the run directory")
_sub.add_argument("--data", type=Path, help="the run's image folder")
_sub.add_argument("--count", type=int, default=8, help="images, of different classes (default 8)")
_sub.add_argument("--out", type=Path, required=True, metavar="FILE.svg", help="the figure")

parse, main = _line.parse, _line.main

if __name__ == "__main__":
    sys.exit(main())
