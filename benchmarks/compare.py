"""Results beside those of another time: ratios on any machine, times and rates where both were measured on the same."""

import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Results = Mapping[str, Any]

MACHINE = "machine"
"""The key of a document that says what its results were measured on; all others are benchmarks."""

RATIOS = frozenset({
    "ratio",
    "share of the matrix rate",
    "share of the other",
    "share of training",
    "share of making the network",
    "skeleton over step",
    "of known blocks",
    "checkpoint over step",
    "median relative error",
})  # fmt: skip
"""Columns that are ratios of two measurements taken side by side, so that they mean something on another machine."""


def machine() -> Row:
    """Return what results were measured on."""
    import torch

    from nasx.train import device_name

    return {
        "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count() or 1,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "commit": commit_of(Path(__file__).parents[1]),
    }


class OtherPrograms:
    """What other programs took of this machine's CPU from now on, hypervisors included; Linux alone tells."""

    def __init__(self) -> None:
        self._start = _taken()

    def row(self) -> Row:
        """Return how many cores they used on average, and whether that disturbs: more than a tenth of a core does."""
        if self._start is None or (now := _taken()) is None:
            return {"cores of others": None, "busy": False}
        wall, everybody, own = (after - before for after, before in zip(now, self._start, strict=True))
        cores = max(0.0, everybody - own) / wall
        return {"cores of others": round(cores, 3), "busy": cores > 0.1}


def _taken() -> tuple[float, float, float] | None:
    """Return in seconds: now, what all had of the CPU, and what this process and its ended children had of it."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    user, nice, system, _, _, interrupts, soft, stolen = ticks
    everybody = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), everybody, sum(os.times()[:4])


def commit_of(checkout: Path) -> str:
    """Return the commit of a checkout, with a plus sign where files differ from it; unknown outside of git."""
    answers = []
    for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", "-C", str(checkout), *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        answers.append(done.stdout.strip())
    return answers[0] + ("+" if answers[1] else "")


def same_machine(now: Results, then: Results) -> bool:
    """Return whether two documents were measured on machines of the same kind."""
    return all(now[MACHINE].get(key) == then[MACHINE].get(key) for key in ("processor", "cores", "accelerator"))


def compared(now: Results, then: Results) -> Iterator[Row]:
    """Yield every measurement that both documents have, row by row: then, now, and now over then.

    A row is known by its texts and whole numbers; its other numbers were measured. Times and rates of another kind of
    machine are left out.
    """
    everything = same_machine(now, then)
    for name, rows in now.items():
        if name == MACHINE or name not in then:
            continue
        before = {_what(row): row for row in then[name]}
        for row in rows:
            other = before.get(_what(row), {})
            for column, value in row.items():
                old = other.get(column)
                if isinstance(value, float) and isinstance(old, float) and (everything or column in RATIOS):
                    yield {
                        "benchmark": name,
                        "row": ", ".join(_what(row)),
                        "column": column,
                        "then": old,
                        "now": value,
                        "now / then": value / old if old else float("nan"),
                    }


def _what(row: Row) -> Sequence[str]:
    return tuple(str(value) for value in row.values() if not isinstance(value, float))
