"""The command line: `python -m recipes.autoformer` searches on the embedded digits, `--help` lists the rest."""

import sys

from nasx.pipeline.commands import CommandLine
from nasx.pipeline.network_commands import NetworkCommands

_line = CommandLine(
    __package__,
    "Search the sizes of a vision transformer.",
    presets=("digits", "autoformer-tiny", "autoformer-small", "autoformer-base"),
)
NetworkCommands(_line, ())

parse, main = _line.parse, _line.main

if __name__ == "__main__":
    sys.exit(main())
