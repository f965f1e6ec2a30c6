"""Run the benchmarks and print their tables, or one JSON document."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import budget, latency, racing, relative_positions

BENCHMARKS = {
    "budget.draws": budget.draws,
    "budget.tables": budget.tables,
    "latency": latency.networks,
    "racing": racing.generations,
    "relative_positions.steps": relative_positions.steps,
}
ON_IMAGES = {"racing": racing.generations_on}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--data", type=Path, help=f"an image folder, of which {', '.join(ON_IMAGES)} makes use")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; known are {', '.join(BENCHMARKS)}")
    results: dict[str, list[dict[str, Any]]] = {}
    for name in options.names or BENCHMARKS:
        on_images = options.data is not None and name in ON_IMAGES
        results[name] = ON_IMAGES[name](options.data) if on_images else BENCHMARKS[name]()
        if not options.json:
            table = Table(*results[name][0], title=name)
            for row in results[name]:
                table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
            Console().print(table)
    if options.json:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
