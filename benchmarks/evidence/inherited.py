"""Networks that keep a supernet's weights: found by its scores, fine-tuned, and compared with others of equal cost."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.markdown import grid, percent, points
from benchmarks.evidence.results import Floats, Truth, best_of_random, exist, records
from benchmarks.evidence.scenes import Scene
from benchmarks.evidence.supernets import RECALIBRATION, SCORING, Setting, hits_of, trained
from benchmarks.evidence.truth import measure_alone, packed_hits
from nasx import Arch
from nasx.comparison import Difference, paired_difference
from nasx.nn import Supernet
from nasx.run import write_json
from nasx.train import recalibrate
from recipes.glit.bench.settings import Settings
from recipes.glit.bench.training import unpacked

NETWORKS = 5
"""Networks that are fine-tuned."""

TUNING_EPOCHS, TUNING_RATE = 10, 0.1
"""Length of the fine-tuning, and its highest rate as a share of the training's."""


def drawn(scene: Scene, seed: int) -> list[Arch]:
    """Return random networks, different ones for each seed."""
    rng = np.random.default_rng([seed, 0])
    return [scene.space[int(index)] for index in rng.choice(scene.space.size, NETWORKS, replace=False)]


def measure(scene: Scene, setting: Setting, seed: int, path: Path) -> None:
    """Train a supernet, score all networks, and fine-tune the best and as many random ones from its weights."""
    started = time.monotonic()
    network, _ = trained(scene, setting, seed)
    archs = list(scene.space)
    scores = [float(hits.mean()) for hits in hits_of(scene, network, archs, SCORING)]
    best = [archs[place] for place in np.argsort(-np.array(scores), kind="stable")[:NETWORKS]]
    tuned = {
        name: [_tuned(scene, network, arch, seed) for arch in chosen]
        for name, chosen in (("searched", best), ("random", drawn(scene, seed)))
    }
    write_json(
        path,
        {
            "scene": scene.name,
            "epochs": setting.epochs,
            "sharing": setting.sharing,
            "seed": seed,
            "seconds": round(time.monotonic() - started, 1),
            "scores": [round(score, 4) for score in scores],
            **tuned,
        },
    )


def measure_random(scene: Scene, seed: int, epochs: float, path: Path) -> None:
    """Train one random network for as long as a whole search takes."""
    measure_alone(scene, drawn(scene, seed)[0], seed, epochs, path)


def _tuned(scene: Scene, supernet: Supernet, arch: Arch, seed: int) -> Mapping[str, Any]:
    """Return what a network gets right with the supernet's weights, and after fine-tuning."""
    network = supernet.extract(arch)
    found: dict[str, Any] = {"arch": scene.space.index(arch)}
    recalibrate(network, scene.recalibration_batches().steps(0, RECALIBRATION[SCORING][0]))
    found["inherited"] = packed_hits(scene, network)
    slow = replace(scene.alone, lr=TUNING_RATE * scene.alone.lr, warmup_epochs=0)
    tuned = scene.train_on(supernet.extract(arch).train(), slow, seed, TUNING_EPOCHS)
    found["tuned"] = packed_hits(scene, tuned)
    return found


EXPERIMENT = "cifar10-inherited"


def lengths() -> list[float]:
    """Return the epochs of the supernets that were trained, the longest first."""
    return sorted({record["epochs"] for record in _searches()}, reverse=True) if exist(EXPERIMENT) else []


def cost(epochs: float) -> float:
    """Return what a search that fine-tunes costs, in trainings of one network."""
    return (epochs + NETWORKS * TUNING_EPOCHS) / Settings().epochs


def found(epochs: float) -> Floats:
    """Return the test accuracies of what the searches found, by seed: fine-tuned, the best on validation."""
    return np.array([_best(record["searched"], "tuned") for record in _searches(epochs)])


def against_random(truth: Truth, epochs: float) -> Difference:
    """Compare what the searches found with the best of as many random networks as they would have paid for."""
    searched = found(epochs)
    return paired_difference(searched, np.full(len(searched), best_of_random(truth, math.ceil(cost(epochs)))))


def sentence(truth: Truth) -> str:
    """Say what a search finds that keeps the supernet's weights."""
    epochs = lengths()[0]
    searched, trainings, difference = found(epochs), cost(epochs), against_random(truth, epochs)
    return (
        "With few images, fine-tune from the supernet's weights (`finetune.epochs`): on the same 4,000 images of "
        f"CIFAR-10, such searches reach {percent(float(searched.mean()))} % at the cost of {trainings:g} trainings; "
        f"the difference from the best of {math.ceil(trainings)} random networks trained alone is {points(difference)} "
        f"points, over {len(searched)} seeds."
    )


def table(truth: Truth) -> str:
    """What was found with a supernet's weights, and what else could be had for the same number of epochs."""
    rows = []
    for epochs in lengths():
        searches, searched, trainings = _searches(epochs), found(epochs), cost(epochs)
        whole = math.ceil(trainings)
        others: dict[str, tuple[float, Floats]] = {
            "the first of them, not fine-tuned": (
                epochs / Settings().epochs,
                np.array([_accuracy(record["searched"][0], "inherited") for record in searches]),
            ),
            f"best of {NETWORKS} random networks of the same supernet, fine-tuned": (
                trainings,
                np.array([_best(record["random"], "tuned") for record in searches]),
            ),
            "the mean of these": (trainings, np.array([_mean(record["random"], "tuned") for record in searches])),
            f"best of {whole} random networks trained alone": (
                whole,
                np.full(len(searched), best_of_random(truth, whole)),
            ),
            "one random network, trained alone as long as all that": (trainings, _alone(epochs)[: len(searched)]),
        }
        first = f"**supernet of {epochs:g} epochs, searched, fine-tuned**"
        rows.append([first, f"{trainings:g}", str(len(searched)), percent(float(searched.mean())), ""])
        for name, (spent, accuracies) in others.items():
            if seeds := len(accuracies):
                difference = points(paired_difference(searched[:seeds], accuracies)) if seeds > 1 else ""
                rows.append([name, f"{spent:g}", str(seeds), percent(float(accuracies.mean())), difference])
    return grid(("networks", "cost", "seeds", "test %", "searched, fine-tuned over it, points"), rows)


def _searches(epochs: float | None = None) -> list[dict[str, Any]]:
    """Return the searches, by seed."""
    found = [record for record in records(EXPERIMENT) if "searched" in record]
    return [record for record in found if epochs in (None, record["epochs"])]


def _alone(epochs: float) -> Floats:
    whole = epochs + NETWORKS * TUNING_EPOCHS
    found = [record for record in records(EXPERIMENT) if "searched" not in record and record["epochs"] == whole]
    return np.array([float(unpacked(record["test"]).mean()) for record in found])


def _accuracy(network: Mapping[str, Any], weights: str, part: str = "test") -> float:
    return float(unpacked(network[weights][part]).mean())


def _mean(networks: Sequence[Mapping[str, Any]], weights: str) -> float:
    return float(np.mean([_accuracy(network, weights) for network in networks]))


def _best(networks: Sequence[Mapping[str, Any]], weights: str) -> float:
    return _accuracy(max(networks, key=lambda network: _accuracy(network, weights, "val")), weights)
