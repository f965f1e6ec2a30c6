"""How well supernets rank: each is trained, scores networks whose truth is known, and is judged by their ranks."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.evidence.scenes import Scene
from nasx import Arch
from nasx.nn import Subnet, Supernet
from nasx.run import write_json
from nasx.train import (
    Paths,
    StratifiedPaths,
    UniformPaths,
    adamw,
    cosine_schedule,
    ema,
    evaluate,
    recalibrate,
    seeded,
    train_supernet,
)
from recipes.glit.bench.training import packed
from recipes.glit.supernet import supernet

RECALIBRATION = {"none": (0, False), "256 plain": (1, False), "1024 plain": (4, False), "1024 augmented": (4, True)}
"""How BatchNorm statistics are recomputed: batches of 256 training images, augmented as in training or not."""

SCORING = "1024 plain"
"""How networks are scored where nothing is said."""

SCORINGS = tuple(name + average for name in RECALIBRATION for average in ("", ", averaged"))
"""How networks are scored: recalibrated in some way, with the last weights or with averaged ones."""


@dataclass(frozen=True)
class Setting:
    """How a supernet is trained."""

    sharing: Literal["separate", "entangled"]
    epochs: int
    paths: Literal["uniform", "stratified", "four"] = "uniform"
    """`four` trains four uniform paths a step, their gradients averaged, in a quarter of the steps."""
    ema: float | None = None

    @property
    def name(self) -> str:
        """A name for files and tables."""
        words = [self.sharing, self.paths, str(self.epochs), *([f"ema{self.ema:g}"] if self.ema else [])]
        return "-".join(words)


def measure(
    scene: Scene, setting: Setting, seed: int, archs: Sequence[Arch], scorings: Sequence[str], path: Path
) -> None:
    """Train a supernet, score networks with it in some of `SCORINGS`, and write what they got right."""
    started = time.monotonic()
    network, average = trained(scene, setting, seed)
    spent = time.monotonic() - started
    scores: dict[str, Any] = {}
    for scoring in scorings:
        recalibration, _, averaged = scoring.partition(", ")
        scored = average if averaged else network
        if scored is not None:
            scores[scoring] = [packed(hits)["hits"] for hits in hits_of(scene, scored, archs, recalibration)]
    write_json(
        path,
        {
            "scene": scene.name,
            "setting": asdict(setting),
            "seed": seed,
            "seconds": round(spent, 1),
            "archs": [scene.space.index(arch) for arch in archs],
            "images": len(scene.val),
            "hits": scores,
        },
    )


def trained(scene: Scene, setting: Setting, seed: int) -> tuple[Supernet, Supernet | None]:
    """Return a trained supernet, and the average of its weights where the setting asks for one."""
    training = scene.supernet
    batches = scene.batches(training, seed)
    share = 4 if setting.paths == "four" else 1
    total = round(setting.epochs * batches.steps_per_epoch / share)
    torch.manual_seed(seed)
    network = supernet(scene.space, scene.vit, sharing=setting.sharing, init_std=scene.init_std)
    optimizer = adamw(network, lr=training.lr, weight_decay=training.weight_decay)
    warmup = min(round(training.warmup_epochs * batches.steps_per_epoch / share), total - 1)
    average = None if setting.ema is None else ema(network, setting.ema)
    train_supernet(
        network,
        seeded(batches.steps(0, total), seed),
        _paths(scene, setting, seed),
        optimizer,
        loss=partial(F.cross_entropy, label_smoothing=training.label_smoothing),
        schedule=cosine_schedule(optimizer, steps=total, warmup_steps=warmup),
        clip_norm=training.clip_norm,
        average=average,
    ).run()
    averaged = copy.deepcopy(average.module) if average is not None else None
    assert averaged is None or isinstance(averaged, Supernet)
    return network, averaged


def _paths(scene: Scene, setting: Setting, seed: int) -> Paths:
    if setting.paths == "stratified":
        return StratifiedPaths(scene.space, scene.macs, 8, seed)
    uniform = UniformPaths(scene.space, seed)
    if setting.paths == "four":
        return lambda step: tuple(arch for number in range(4) for arch in uniform(4 * step + number))
    return uniform


def hits_of(
    scene: Scene, network: nn.Module, archs: Sequence[Arch], recalibration: str
) -> Iterator["np.typing.NDArray[np.bool_]"]:
    """Yield which validation images each network classifies correctly, recalibrated in a way of `RECALIBRATION`."""
    count, augmented = RECALIBRATION[recalibration]
    batches = scene.recalibration_batches(augmented)
    for arch in archs:
        subnet = Subnet(network, arch).eval()
        if count:
            recalibrate(subnet, batches.steps(0, count))
        yield evaluate(subnet, scene.evaluation(scene.val)).scores > 0
