"""Prove a checkout on a GPU within four minutes: the tests marked `gpu`, then the benchmarks named `gpu`, and a table.

    python -m benchmarks.on_gpu --out results

writes `results/tests.txt` (what pytest printed) and `results/gpu.json` (a document as `python -m benchmarks gpu --json`
prints it), each row as soon as it is there, and ends with status 1 where a test failed. Nothing needs to be installed
but torch, torchvision, timm, pytest, and what nasx depends on (pydantic, rich, networkx, scipy, safetensors). Where the
machine with the GPU reaches no package index, take the wheels of what it lacks along, of its own Python version:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 --dest wheels \
        pydantic==2.* pydantic-core annotated-types typing-inspection

(the version of pydantic-core is the one that `pip show pydantic` requires), and install them there with
`python -m pip install --no-index --no-deps --target site wheels/*.whl` and `PYTHONPATH=site`.

`--device cpu` runs everything at a small size on a CPU, to try it out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import gpu
from benchmarks.__main__ import show
from benchmarks.cases import Row, digits_case
from benchmarks.compare import MACHINE, OtherPrograms, machine

ROOT = Path(__file__).parents[1]
COMPILING = 90.0
"""Seconds that compiling and timing one network takes at most."""


def tested(device: str, out: Path, seconds: float) -> int:
    """Run the tests, write what they print, and return pytest's status; 124 where they took too long."""
    chosen = ["-m", "gpu"] if device == "cuda" else ["-m", "not gpu"]
    # side by side where that is possible: most of a test is starting up
    cores = os.cpu_count() or 1
    workers = min(8, cores) if device == "cuda" and find_spec("xdist") else 1
    spread = ["-n", str(workers)] if workers > 1 else []
    # the other tests' configuration wants packages that these do not need; other releases of some warn of other things
    options = ["-v", "--durations=8", "--confcutdir=tests/gpu", "-W", "default", "-p", "no:benchmark", *spread, *chosen]
    command = [sys.executable, "-m", "pytest", *options, "tests/gpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // workers // 2))}
    with (out / "tests.txt").open("w") as file:
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, env=environment
            )
        except subprocess.TimeoutExpired:
            return 124
    return done.returncode


def benchmarks(device: str, left: Callable[[], float]) -> dict[str, Callable[[], Iterable[Row]]]:
    """Return the benchmarks in the order of their use; `left` tells the seconds that are left."""
    if device == "cuda":
        return {
            "gpu.host": gpu.host,
            "gpu.networks": gpu.networks,
            "gpu.data": gpu.data,
            "gpu.compiled": lambda: gpu.compiled(batches=(256,), at_most=left() - COMPILING),
        }
    small: dict[str, Any] = {"case": digits_case(), "batches": (8,)}
    return {
        "gpu.host": partial(gpu.host, device, steps=2, **small),
        "gpu.networks": partial(gpu.networks, device, seconds=0, **small),
        "gpu.data": partial(gpu.data, device, (0,), batch=4, seconds=0.2),
        "gpu.compiled": partial(gpu.compiled, device, seconds=0, at_most=-1, **small),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all and return 1 where a test failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.on_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="where the files go (default: results)")
    parser.add_argument("--seconds", type=float, default=235.0, help="for all of it (default: 235)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--no-tests", action="store_true", help="run the benchmarks alone")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def left() -> float:
        return float(options.seconds - (time.monotonic() - started))

    options.out.mkdir(parents=True, exist_ok=True)
    console, failed = Console(width=160), False
    if not options.no_tests:
        status = tested(options.device, options.out, 0.55 * options.seconds)
        failed = status != 0
        console.print(f"tests: status {status} after {time.monotonic() - started:.0f} s", markup=False)
        tail = (options.out / "tests.txt").read_text().splitlines()[-15:]
        console.print("\n".join(tail), markup=False, highlight=False)
    results: dict[str, Any] = {MACHINE: machine()}
    others = OtherPrograms()
    for name, function in benchmarks(options.device, left).items():
        rows: list[Row] = []
        try:
            for row in function():  # those measured before the time is over are kept
                rows.append(row)
                results[name] = rows
                results[MACHINE] |= others.row()
                (options.out / "gpu.json").write_text(json.dumps(results, indent=1))
        except Exception as error:  # the others are wanted all the same
            failed = True
            console.print(f"{name}: {type(error).__name__}: {error}", markup=False)
            continue
        show(f"{name} ({left():.0f} s left)", rows, console)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
