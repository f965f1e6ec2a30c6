"""Networks that keep a supernet's weights: found by its scores, fine-tuned, and compared with others of equal cost."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import nn

from benchmarks.evidence.scenes import Scene
from benchmarks.evidence.supernets import RECALIBRATION, Setting, hits_of, trained
from benchmarks.evidence.truth import measure_alone
from nasx import Arch
from nasx.nn import Supernet
from nasx.run import write_json
from nasx.train import adamw, cosine_schedule, recalibrate, seeded, train
from recipes.glit.bench.training import packed

NETWORKS = 5
"""Networks that are fine-tuned."""

TUNING_EPOCHS, TUNING_RATE = 10, 0.1
"""Length of the fine-tuning, and its highest rate as a share of the training's."""

SCORING = "1024 plain"


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
    found["inherited"] = _hits(scene, network)
    network = supernet.extract(arch).train()
    training = scene.alone
    batches = scene.batches(training, seed)
    total = TUNING_EPOCHS * batches.steps_per_epoch
    optimizer = adamw(network, lr=TUNING_RATE * training.lr, weight_decay=training.weight_decay)
    train(
        network,
        seeded(batches.steps(0, total), seed),
        optimizer,
        loss=partial(F.cross_entropy, label_smoothing=training.label_smoothing),
        schedule=cosine_schedule(optimizer, steps=total),
        clip_norm=training.clip_norm,
    ).run()
    found["tuned"] = _hits(scene, network)
    return found


def _hits(scene: Scene, network: nn.Module) -> Mapping[str, Any]:
    return {part: packed(scene.hits(network, images)) for part, images in (("val", scene.val), ("test", scene.test))}
