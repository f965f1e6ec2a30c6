"""The command line: `python -m recipes.localvit` searches on the embedded digits, `--help` lists the rest."""

import sys

from nasx.pipeline.commands import CommandLine
from nasx.pipeline.network_commands import NetworkCommands

LINE = CommandLine(
    __package__,
    "Search where a vision transformer's feed-forwards are local, and how.",
    presets=("digits", "localvit-tiny"),
)
NetworkCommands(LINE, ("localvit-tiny-act1", "localvit-tiny-act3"))

parse, main = LINE.parse, LINE.main

if __name__ == "__main__":
    sys.exit(main())
