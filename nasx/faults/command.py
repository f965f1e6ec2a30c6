"""`python -m nasx.faults`: every suite on the file system of a directory."""

import argparse
import functools
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nasx.cli import BAD_INPUT, DONE, print_json
from nasx.faults.suites import (
    Outcome,
    corruptions,
    crash_points,
    disk_errors,
    lock_races,
    malicious_files,
    power_losses,
)

FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every suite, print what was tried and what failed, and return 0, or 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m nasx.faults", description=main.__doc__)
    parser.add_argument("--directory", type=Path, help="whose file system to use (default: the temporary directory's)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--long", action="store_true", help="more lock races, power losses and corruptions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random faults (default 0)")
    options = parser.parse_args(arguments)
    races, images, damages = (50, 500, 1000) if options.long else (10, 150, 300)
    suites: dict[str, Callable[[Path], Outcome]] = {
        "lock races": functools.partial(lock_races, rounds=races),  # first, as it needs no torch
        "crash points": crash_points,
        "power losses": functools.partial(power_losses, images=images, seed=options.seed),
        "disk errors": disk_errors,
        "corruptions": functools.partial(corruptions, count=damages, seed=options.seed),
        "malicious files": malicious_files,
    }
    if options.directory and not options.directory.is_dir():
        print(f"error: --directory must be an existing directory, but {options.directory} is none", file=sys.stderr)
        return BAD_INPUT
    logging.getLogger("nasx").addHandler(logging.NullHandler())  # damaged checkpoints are expected here
    document: dict[str, Any] = {"seed": options.seed, "suites": []}
    with tempfile.TemporaryDirectory(prefix="nasx-faults-", dir=options.directory) as scratch:
        for name, suite in suites.items():
            start = time.monotonic()
            (directory := Path(scratch).resolve() / name.replace(" ", "-")).mkdir()
            outcome = suite(directory)
            document["suites"].append({**asdict(outcome), "seconds": round(time.monotonic() - start, 1)})
            if not options.json:
                _print(outcome, document["suites"][-1]["seconds"])
    document["failed"] = sum(len(suite["failures"]) for suite in document["suites"])
    if options.json:
        print_json(document)
    return FAILED if document["failed"] else DONE


def _print(outcome: Outcome, seconds: float) -> None:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.counts.items()))
    print(f"{outcome.name:<16}{outcome.tried:>6,} tried {len(outcome.failures):>4} failed {seconds:>6.1f} s  {counts}")
    for failure in outcome.failures:
        print(f"  {failure}", flush=True)
