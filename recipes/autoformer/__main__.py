"""The command line: `python -m recipes.autoformer` searches on the embedded digits, `--help` lists the rest."""

import sys

from nasx.pipeline.commands import CommandLine, program
from nasx.pipeline.network_commands import NetworkCommands
from nasx.pipeline.recipe import Recipe


def _load() -> Recipe:
    from .problem import RECIPE

    return RECIPE


LINE = CommandLine(
    "autoformer",
    "Search the sizes of a vision transformer.",
    _load,
    prog=program(__package__),
    presets=("digits", "autoformer-tiny", "autoformer-small", "autoformer-base"),
)
NetworkCommands(LINE, ())

parse, main = LINE.parse, LINE.main

if __name__ == "__main__":
    sys.exit(main())
