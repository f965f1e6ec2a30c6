"""docs/performance.md, written from the committed results: `python -m benchmarks page`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template

from benchmarks.compare import MACHINE

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = Path(__file__).with_name("results")
TEMPLATE = Path(__file__).with_name("performance.md.j2")

SHOWN = (
    *("networks", "supernet.steps", "relative_positions", "loop.steps", "loop.together", "loop.checkpoints"),
    *("precision", "compiled", "blocks", "operators"),
)
"""Benchmarks of a CPU that the page shows; together they take about nine minutes."""
BEFORE = "c32bc43"
"""The commit that the main job is compared with."""


@dataclass(frozen=True)
class Measured:
    """What a file of results says; a file that is not there says that nothing was measured."""

    found: dict[str, Any]
    command: str

    @property
    def machine(self) -> str:
        """What it was measured on and when, as a paragraph."""
        if not self.found:
            return f"Nothing has been measured here yet; `{self.command}` does."
        m = self.found[MACHINE]
        place = m["processor"] if m["accelerator"] == "none" else m["accelerator"]
        text = (
            f"Measured on {m['date']} at commit {m['commit']}: {place}, {m['cores']} cores, {m['system']}, "
            f"Python {m['python']}, torch {m['torch']}."
        )
        if "settings" in m:
            text += f" Settings beside the preset's: {', '.join(f'`{setting}`' for setting in m['settings'])}."
        if m["busy"]:
            text += (
                "\n\n!!! warning\n    Other programs were using this machine meanwhile. Ratios hold, with a wider "
                "spread; times and rates are worse than on an idle machine."
            )
        return text

    def table(self, name: str, *columns: str) -> str:
        """Return the rows of a benchmark as a table, with some of the columns, by default all."""
        rows = self.found.get(name, [])
        if not rows:
            return "Not measured yet."
        known = list(dict.fromkeys(column for row in rows for column in row))
        shown = [column for column in columns or known if column in known]
        lines = [shown, ["---" if _is_text(rows, column) else "---:" for column in shown]]
        lines += [[_text(row.get(column, "")) for column in shown] for row in rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(results: Path = RESULTS) -> str:
    """Return the page that the files of results make."""
    commands = {
        "cpu": f"python -m benchmarks {' '.join(SHOWN)} --json",
        "main_job": "python -m benchmarks.main_job",
        "gpu": "python -m benchmarks.on_gpu",
    }
    measured = {name: Measured(_read(results / f"{name}.json"), command) for name, command in commands.items()}
    template = Template(TEMPLATE.read_text(encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True)
    return template.render(**measured, cpu_names=" ".join(SHOWN), before=BEFORE)


def write() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _is_text(rows: list[dict[str, Any]], column: str) -> bool:
    return any(isinstance(row.get(column), str) for row in rows)


def _text(value: Any) -> str:
    """Return a value with three digits; whole numbers in full."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return "never" if value > 0 else ""
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    write()
