"""The most memory that training takes, each in a process of its own."""

import json
import subprocess
import sys

from benchmarks.cases import Case, Row, bench_case, digits_case, tiny_case, training_step
from nasx.measure import count_peak_memory
from nasx.train import adamw, use_threads
from recipes.glit.supernet import supernet

CASES = {"digits": digits_case, "cifar10 table": bench_case, "GLiT-Tiny": tiny_case}
KINDS = ("network", "separate", "entangled")


def training() -> list[Row]:
    """Return the peak of a network's training, and of its supernets', above a process that has loaded the same code.

    `ratio` is over the network's; `counted` is what `nasx.measure` counts for the activations of one forward pass.
    """
    rows: list[Row] = []
    for name, make in CASES.items():
        case = make()
        found = {kind: _peak(name, kind) for kind in KINDS}
        counted = case.batch * count_peak_memory(case.network(), case.images(1)[0]) / 1e6
        rows += [
            {
                "network": name,
                "trained": kind,
                "batch": case.batch,
                "peak, MB": peak,
                "ratio": peak / found["network"],
                "counted, MB": counted,
            }
            for kind, peak in found.items()
        ]
    return rows


def _peak(name: str, kind: str) -> float:
    """Return megabytes, of a process started for it."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", name, kind], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def main(name: str, kind: str) -> None:
    """Train a few steps and print how much the resident memory has grown."""
    import resource

    case: Case = CASES[name]()
    with use_threads(1):
        other = Case("", case.vit, case.space, case.arch, batch=1)
        training_step(other.network(), *other.images())()  # loads what the first step loads
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        images, labels = case.images()
        if kind == "network":
            step = training_step(case.network(), images, labels)
        else:
            whole = supernet(case.space, case.vit, sharing=kind, init_std=case.init_std)  # type: ignore[arg-type]
            optimizer = adamw(whole, lr=1e-4, weight_decay=0.05)
            step = training_step(whole, images, labels, case.arch, optimizer=optimizer)
        for _ in range(3):
            step()
        print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3))


if __name__ == "__main__":
    main(*sys.argv[1:])
