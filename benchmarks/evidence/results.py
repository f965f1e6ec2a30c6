"""Reading what experiments left, and the statistics that docs/evidence.md shows of them."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.evidence.supernets import SCORING, Setting
from nasx.comparison import Interval
from nasx.ranking import RankAgreement, rank_agreement
from recipes.glit.bench import Table, table
from recipes.glit.bench.training import unpacked

DATA = Path(__file__).with_name("data")

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def collect(folder: Path, experiment: str) -> Path:
    """Pack the results of an experiment, one JSON file each, into one file beside this module."""
    found = [json.loads(path.read_text()) for path in sorted((folder / experiment).glob("*.json"))]
    if not found:
        raise ValueError(f"{folder / experiment} holds no results; run the experiment first")
    return keep(experiment, found)


def collect_ablation(document: Path) -> Path:
    """Keep the networks of one of `python -m recipes.glit ablate`'s tables, by row and seed."""
    found = json.loads(document.read_text())
    networks = [
        {"row": row["label"], "paper": row["paper"]["accuracy"], **{k: v for k, v in network.items() if k != "arch"}}
        for row in found["rows"]
        for network in row["networks"]
    ]
    return keep(f"ablation-{found['table']}", networks)


def collect_runs(folder: Path, experiment: str) -> Path:
    """Keep what runs of a recipe with different seeds say of their networks, from the summaries in their folders."""
    found = []
    for path in sorted((folder / experiment).glob("*/summary.json")):
        summary = json.loads(path.read_text())
        networks = {
            name: {key: network[key] for key in ("macs", "params", "val_accuracy", "test_accuracy")}
            for name, network in summary["networks"].items()
        }
        found.append({"seed": summary["seed"], "networks": networks})
    return keep(experiment, found)


def keep(experiment: str, found: Sequence[Mapping[str, Any]]) -> Path:
    """Write results of an experiment into one file beside this module, one a line."""
    path = DATA / f"{experiment}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(record, sort_keys=True) for record in found) + "\n]\n")
    return path


def exist(experiment: str) -> bool:
    """Return whether results of an experiment were collected."""
    return (DATA / f"{experiment}.json").is_file()


@lru_cache(maxsize=8)
def records(experiment: str) -> list[dict[str, Any]]:
    """Return the results of an experiment."""
    found: list[dict[str, Any]] = json.loads((DATA / f"{experiment}.json").read_text())
    return found


@dataclass(frozen=True)
class Truth:
    """Accuracies of networks trained alone, (networks, seeds), by the networks' numbers in their space."""

    indices: tuple[int, ...]
    val: Floats
    test: Floats

    def among(self, indices: Collection[int]) -> "Truth":
        """Return the same of those networks alone that are among some."""
        kept = [place for place, index in enumerate(self.indices) if index in set(indices)]
        return Truth(tuple(self.indices[place] for place in kept), self.val[kept], self.test[kept])

    @property
    def accuracy(self) -> Floats:
        """Mean test accuracy over the seeds, (networks,)."""
        return self.test.mean(axis=1)

    @property
    def noise(self) -> float:
        """Standard deviation of one training's test accuracy, pooled over networks."""
        return float(np.sqrt(self.test.var(axis=1, ddof=1).mean()))

    @property
    def spread(self) -> float:
        """Standard deviation of the networks' true accuracies: that of the means, less what noise adds to it."""
        of_means = self.accuracy.var(ddof=1)
        return float(np.sqrt(max(0.0, of_means - self.noise**2 / self.test.shape[1])))


def digits_truth() -> Truth:
    """Return the truth of the digits, on validation and test images together."""
    by_network: dict[int, dict[int, tuple[Bools, Bools]]] = defaultdict(dict)
    for record in records("digits-truth"):
        parts = [unpacked(record[part]) for part in ("val", "test")]
        by_network[record["arch"]][record["seed"]] = parts[0], parts[1]
    complete = {index: seeds for index, seeds in by_network.items() if len(seeds) > 1}
    val = [[of_seed[0].mean() for _, of_seed in sorted(seeds.items())] for seeds in complete.values()]
    both = [[np.concatenate(of_seed).mean() for _, of_seed in sorted(seeds.items())] for seeds in complete.values()]
    return Truth(tuple(complete), np.array(val), np.array(both))


def cifar10_truth(found: Table | None = None) -> Truth:
    """Return the truth of the benchmark's networks on CIFAR-10."""
    found = found or table()
    space = found.settings.space
    archs = [arch for arch in found.archs if len(found.of(arch)) > 1]
    return Truth(
        tuple(space.index(arch) for arch in archs),
        np.array([[row.val_accuracy for row in found.of(arch)] for arch in archs]),
        np.array([[row.test_accuracy for row in found.of(arch)] for arch in archs]),
    )


@dataclass(frozen=True)
class Ranking:
    """What a supernet's scores were worth."""

    setting: Setting
    seed: int
    scoring: str
    seconds: float
    accuracy: float
    """Mean accuracy of the networks with the supernet's weights."""
    agreement: RankAgreement
    scores: Floats


def rankings(experiment: str, truth: Truth, *, scoring: str = SCORING) -> Iterator[Ranking]:
    """Yield how each supernet that was scored in this way ranked the networks whose truth is known."""
    for record in records(experiment):
        if scoring not in record["hits"]:
            continue
        at = {index: place for place, index in enumerate(record["archs"])}
        hits = [unpacked({"images": record["images"], "hits": text}) for text in record["hits"][scoring]]
        scores = np.array([hits[at[index]].mean() for index in truth.indices])
        agreement = rank_agreement(scores, truth.test[:, 0], second_accuracies=truth.test[:, 1], top_k=(1, 5))
        yield Ranking(
            Setting(**record["setting"]),
            record["seed"],
            scoring,
            record["seconds"],
            float(np.mean([h.mean() for h in hits])),
            agreement,
            scores,
        )


def best_of(truth: Truth, places: Sequence[int]) -> float:
    """Return the expected test accuracy of the best of some networks, trained once and picked by validation."""
    return float(np.mean([picked(truth, places, seed) for seed in range(truth.val.shape[1])]))


def picked(truth: Truth, places: Sequence[int], seed: int) -> float:
    """Return the mean test accuracy of the network that one seed's validation picks."""
    winner = max(places, key=lambda place: truth.val[place, seed])
    return float(truth.test[winner].mean())


def best_of_random(truth: Truth, k: int, *, most: int = 4000) -> float:
    """Return the expected test accuracy of the best of k random networks, exactly where there are few ways."""
    everyone = range(len(truth.indices))
    ways = list(combinations(everyone, k)) if len(truth.indices) ** k <= 50 * most else None
    if ways is None:
        rng = np.random.default_rng(0)
        ways = [tuple(rng.choice(len(truth.indices), k, replace=False)) for _ in range(most)]
    return float(np.mean([best_of(truth, way) for way in ways]))


def with_interval(interval: Interval, digits: int = 2) -> str:
    """Return a value with its interval as tables show it."""
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
