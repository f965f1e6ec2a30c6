"""The main job of two checkouts, in turns: `python -m benchmarks.main_job BEFORE` compares this one with another.

Each turn runs `python -m recipes.glit` on the digits in a process of its own, with a new run directory, and reads the
seconds of the stages that train from its summary. Every training of both sees the same number of images, but a checkout
may train more networks than another, so seconds are those of one training. Make the other checkout with

    git worktree add ../before COMMIT

`ratio` is seconds per training before over now, so that 2 means twice as fast; the turns change their order, so that
what disturbs the machine disturbs both. `--json FILE` writes the rows with what they were measured on, for
docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.__main__ import show
from benchmarks.cases import Row
from benchmarks.compare import MACHINE, OtherPrograms, commit_of, machine

ROOT = Path(__file__).parents[1]
SHORT = ("supernet.epochs=10", "retrain.epochs=12", "search.generations=2")
TRAININGS = {"supernets": ("supernet",), "networks trained alone": ("retrain", "baselines")}
"""How the names of the stages that train end."""


def summary(checkout: Path, settings: Sequence[str], directory: Path) -> dict[str, Any]:
    """Run the main job of a checkout, on one thread and one process, and return its summary."""
    options = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "recipes.glit", "run", "--run-dir", str(directory), *options, "--json"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "NASX_PROCESSES": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the main job of {checkout} ended with status {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def seconds_of(summary: Mapping[str, Any], directory: Path) -> dict[str, float]:
    """Return the seconds of one of a run's trainings, by kind."""
    seconds, trainings = dict.fromkeys(TRAININGS, 0.0), dict.fromkeys(TRAININGS, 0)
    for name, stage in summary["stages"].items():
        for kind in (kind for kind, ends in TRAININGS.items() if name.endswith(ends)):
            seconds[kind] += stage["seconds"]
            trainings[kind] += len(list((directory / name).glob("[0-9]*.safetensors"))) or 1  # a supernet has no number
    return {kind: spent / trainings[kind] for kind, spent in seconds.items()}


def compared(before: Path, now: Path, settings: Sequence[str], rounds: int) -> list[Row]:
    """Return a row for each kind of training: median seconds and their ratio, round by round, and what was trained.

    Multiply-adds and accuracies are means over the networks in the runs' tables: found, drawn at random, DeiT-shaped.
    """
    checkouts = {"before": before.resolve(), "now": now.resolve()}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    networks: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    order = list(checkouts)
    with tempfile.TemporaryDirectory() as directory:
        for number in range(rounds):
            for name in order:
                run = Path(directory) / f"{name}{number}"
                found = summary(checkouts[name], [*settings, f"seed={number}"], run)
                seconds[name].append(seconds_of(found, run))
                networks[name] += found["networks"].values()
            order.reverse()
    means: Row = {
        f"{what} {name}": float(np.mean([network[key] for network in networks[name]]))
        for what, key in (("MACs", "macs"), ("test accuracy", "test_accuracy"))
        for name in checkouts
    }
    rows: list[Row] = []
    for kind in seconds["now"][0]:
        then, today = (np.array([found[kind] for found in seconds[name]]) for name in ("before", "now"))
        rows.append(
            {
                "training": kind,
                "rounds": rounds,
                "ratio": float(np.median(then / today)),
                "lowest": float(np.min(then / today)),
                "highest": float(np.max(then / today)),
                "before, s": float(np.median(then)),
                "now, s": float(np.median(today)),
                **means,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two checkouts and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.main_job", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the checkout to compare with")
    parser.add_argument("now", type=Path, nargs="?", default=ROOT, help="by default this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", metavar="SECTION.FIELD=VALUE", help=f"by default {' '.join(SHORT)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to a file too")
    options = parser.parse_args(arguments)
    for checkout in (options.before, options.now):
        if not (checkout / "recipes" / "glit").is_dir():
            parser.error(f"{checkout} is no checkout of nasx: it has no recipes/glit")
    settings = options.set or SHORT
    measured_on = {**machine(), "before": commit_of(options.before), "settings": list(settings)}
    others = OtherPrograms()
    rows = compared(options.before, options.now, settings, options.rounds)
    show("main job on the digits, before / now", rows, Console())
    if options.json:
        options.json.write_text(json.dumps({MACHINE: measured_on | others.row(), "main_job": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
