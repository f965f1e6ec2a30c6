"""Run benchmarks and print their tables, or one JSON document.

A name such as `supernet` stands for all whose names begin with it. `--compare` sets the results beside a stored
document, by default the one that comes with the repository. `gpu` needs a CUDA device and runs only when named. `page`
writes docs/performance.md from the committed results.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.compare import MACHINE, OtherPrograms, compared, machine, same_machine

BASELINE = Path(__file__).with_name("results") / "cpu.json"

BENCHMARKS = (
    "blocks.shares",
    "budget.draws",
    "budget.tables",
    "compiled.steps",
    "data.folder",
    "data.memory",
    "latency.networks",
    "loop.checkpoints",
    "loop.ranks",
    "loop.scoring",
    "loop.steps",
    "loop.together",
    "memory.training",
    "networks.inference",
    "networks.training",
    "operators.steps",
    "precision.steps",
    "racing.generations",
    "relative_positions.steps",
    "startup.commands",
    "startup.imports",
    "startup.supernets",
    "supernet.growth",
    "supernet.steps",
)
"""Functions that return rows, by module; modules are imported when one of theirs runs."""

ON_GPU = ("gpu.host", "gpu.data", "gpu.networks", "gpu.compiled")
ON_IMAGES = {"racing.generations": "racing.generations_on"}
"""What runs in a benchmark's place where there is an image folder for it."""


def chosen(names: Sequence[str]) -> list[str]:
    """Return the benchmarks that names stand for: all that need no GPU by default; ValueError for an unknown name."""
    found: list[str] = []
    for name in names:
        fitting = [known for known in (*BENCHMARKS, *ON_GPU) if known == name or known.startswith(f"{name}.")]
        if not fitting:
            raise ValueError(f"there is no benchmark {name!r}; known are {', '.join((*BENCHMARKS, *ON_GPU))}")
        found += [known for known in fitting if known not in found]
    return found if names else list(BENCHMARKS)


def run(name: str, data: Path | None = None) -> list[dict[str, Any]]:
    """Return the rows of one benchmark."""
    if data is not None and name in ON_IMAGES:
        return list(partial(_function(ON_IMAGES[name]), data)())
    return list(_function(name)())


def _function(name: str) -> Any:
    module, _, function = name.partition(".")
    return getattr(import_module(f"benchmarks.{module}"), function)


def show(title: str, rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print rows as a table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(_text(row.get(column, "")) for column in columns))
    console.print(table)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, all that need no GPU by default."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join((*BENCHMARKS, *ON_GPU))}, or page")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument(
        "--compare", type=Path, nargs="?", const=BASELINE, metavar="FILE", help="a document to compare with"
    )
    parser.add_argument("--data", type=Path, help=f"an image folder, of which {', '.join(ON_IMAGES)} makes use")
    options = parser.parse_args(arguments)
    if options.names == ["page"]:
        from benchmarks.page import write

        write()
        return 0
    try:
        names = chosen(options.names)
        then = json.loads(options.compare.read_text()) if options.compare else None
    except (OSError, ValueError) as error:
        parser.error(str(error))
    from nasx.train import keep_freed_memory

    keep_freed_memory()  # as the commands that train do
    console = Console(stderr=options.json)
    results: dict[str, Any] = {MACHINE: machine()}
    others = OtherPrograms()
    for name in names:
        results[name] = run(name, options.data)
        results[MACHINE] |= others.row()
        if not options.json:
            show(name, results[name], console)
    if then is not None:
        results["compared"] = rows = list(compared(results, then))
        if not options.json:
            kind = "of the same kind" if same_machine(results, then) else "of another kind: ratios only"
            show(f"beside {then[MACHINE]['date']}, on a machine {kind}", rows, console)
    if options.json:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
