"""The command line: `python -m recipes.autoformer` searches on the embedded digits, `--help` lists the rest."""

import sys

from nasx.pipeline.commands import CommandLine
from nasx.pipeline.network_commands import NetworkCommands

LINE = CommandLine(
    __package__,
    "Search the sizes of a vision transformer.",
    presets=("digits", "autoformer-tiny", "autoformer-small", "autoformer-base"),
)
NetworkCommands(LINE, ())

parse, main = LINE.parse, LINE.main

if __name__ == "__main__":
    sys.exit(main())
