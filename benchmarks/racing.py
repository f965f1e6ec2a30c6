"""What racing saves and what it costs, on recorded candidates of a real search and on simulated ones. One core, numpy.

The recorded hits are those of `benchmarks.racing_record`; with `--data` a supernet is trained and searched anew.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasx import Arch
from nasx.search import race

Row = dict[str, Any]
Bools = npt.NDArray[np.bool_]

RECORDED = Path(__file__).parent.parent / "tests" / "search" / "cifar10_hits.npz"
TOLERANCE = 0.001


def recorded(path: Path = RECORDED) -> Mapping[str, Bools]:
    """Return hits (candidates, images) on CIFAR-10: of a whole search, of its random start, of its last generation."""
    with np.load(path) as file:
        hits = np.unpackbits(file["hits"], axis=1, count=int(file["images"])).astype(bool)
        population = int(file["population"])
    return {
        "CIFAR-10, a whole search": hits,
        "CIFAR-10, drawn at random": hits[:population],
        "CIFAR-10, last generation": hits[-population:],
    }


def simulated(images: int = 5_000, candidates: int = 160, seed: int = 0) -> Mapping[str, Bools]:
    """Return hits of candidates that mostly agree, because images differ in how hard they are."""
    ahead = np.zeros(candidates)
    ahead[:: candidates // 20] = 0.02
    one = np.zeros(candidates)
    one[0] = 0.1
    rng = np.random.default_rng(seed)
    worlds = {
        "all equally good": np.zeros(candidates),
        "spread of 1 point": 0.01 * rng.standard_normal(candidates),
        "spread of 4 points": 0.04 * rng.standard_normal(candidates),
        "one in eight 2 points ahead": ahead,
        "one far ahead": one,
    }
    return {name: _hits(quality, images, rng) for name, quality in worlds.items()}


def _hits(quality: npt.NDArray[np.float64], images: int, rng: np.random.Generator) -> Bools:
    hardness, own = rng.standard_normal(images), rng.standard_normal((len(quality), images))
    return np.sqrt(0.8) * hardness + np.sqrt(0.2) * own < 0.25 + quality[:, None] / 0.39  # about 60 % right


def replay(hits: Bools, *, generations: int = 40, candidates: int = 50, keep: int = 5) -> Row:
    """Return what racing did in generations of candidates drawn from those recorded, against full evaluation."""
    used, lost = [], []
    for seed in range(generations):
        drawn = np.random.default_rng(seed).choice(len(hits), candidates, replace=False)
        archs = {Arch({"candidate": int(i)}): hits[i] for i in drawn}

        def correct(asked: Sequence[Arch], at: npt.NDArray[np.int64]) -> Bools:
            return np.array([archs[arch][at] for arch in asked])  # noqa: B023

        found = race(list(archs), correct, hits.shape[1], keep=keep, seed=seed)
        best = np.sort(hits[drawn].mean(axis=1))[-keep:].mean()
        used.append(found.samples / found.samples_in_full)
        lost.append(best - np.mean([archs[arch].mean() for arch in found.kept[:keep]]))
    return {
        "images evaluated": float(np.mean(used)),
        "lost, points": 100 * float(np.mean(lost)),
        "at most, points": 100 * float(np.max(lost)),
        "generations within 0.1 points": float(np.mean(np.array(lost) <= TOLERANCE + 1e-9)),
    }


def generations() -> list[Row]:
    """Return a row for each set of candidates: shares of the images and of the generations, and accuracy lost."""
    return [{"candidates": name, **replay(hits)} for name, hits in {**recorded(), **simulated()}.items()]


def generations_on(data: Path) -> list[Row]:
    """Return the same for a supernet that is trained and searched on an image folder first: ten minutes of one core."""
    from benchmarks.racing_record import record  # torch and a recipe, which a replay does without

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "hits.npz"
        record(data, path)
        return [{"candidates": name, **replay(hits)} for name, hits in recorded(path).items()]
