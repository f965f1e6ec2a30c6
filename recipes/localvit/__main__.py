"""The command line: `python -m recipes.localvit` searches on the embedded digits, `--help` lists the rest."""

import sys

from nasx.pipeline.commands import CommandLine, program
from nasx.pipeline.network_commands import NetworkCommands
from nasx.pipeline.recipe import Recipe


def _load() -> Recipe:
    from .problem import RECIPE

    return RECIPE


LINE = CommandLine(
    "localvit",
    "Search where a vision transformer's feed-forwards are local, and how.",
    _load,
    prog=program(__package__),
    presets=("digits", "localvit-tiny"),
)
NetworkCommands(LINE, ("localvit-tiny-act1", "localvit-tiny-act3"))

parse, main = LINE.parse, LINE.main

if __name__ == "__main__":
    sys.exit(main())
