"""Training the benchmark's networks: one JSON file each, so that a run goes on wherever it was stopped."""

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx import Arch
from nasx.data import (
    Augment,
    ImageArray,
    Images,
    TrainBatches,
    channel_statistics,
    eval_batches,
    load_image_folder,
    stratified_split,
)
from nasx.run import write_json
from nasx.train import adamw, cosine_schedule, evaluate, seeded, train

from ..model import build_in
from .settings import Settings

CURVE = 60  # points of a loss curve, or as many as there are steps


@dataclass(frozen=True)
class Parts:
    """The images: what networks are trained on, what a search may look at, and the test images."""

    train: Images
    val: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]


@lru_cache(maxsize=1)
def load_parts(data: Path, settings: Settings) -> Parts:
    """Return the images of a CIFAR-10 folder, decoded into memory."""
    dataset = load_image_folder(
        data, image_size=settings.image_size, seed=settings.split_seed, val_images=settings.val_images, leaks="allow"
    )
    _, chosen = stratified_split(dataset.train.labels, settings.train_images, settings.split_seed)
    train_images, val, test = (
        _in_memory(images, indices)
        for images, indices in ((dataset.train, chosen), (dataset.val, None), (dataset.open_test(), None))
    )
    mean, std = channel_statistics(train_images)
    return Parts(train_images, val, test, mean, std)


def _in_memory(images: Images, indices: "np.typing.NDArray[np.int64] | None") -> ImageArray:
    places = np.arange(len(images)) if indices is None else indices
    return ImageArray(images.load(places).numpy(), images.labels[places])


@dataclass(frozen=True)
class Job:
    """One network to train, and the file that its result goes to."""

    arch: Arch
    seed: int
    settings: Settings
    data: Path
    path: Path
    device: str = "cpu"


def result_path(folder: Path, number: int, seed: int) -> Path:
    """Return the file of a network's result, given its number in the order of training."""
    return folder / f"{number:03}-{seed}.json"


def make(job: Job) -> nn.Module:
    """Return a job's network, untrained, on the CPU."""
    torch.manual_seed(job.seed)
    return build_in(job.settings.vit, job.arch, init_std=job.settings.init_std)


def batches_of(settings: Settings, parts: Parts, seed: int, device: torch.device | str = "cpu") -> TrainBatches:
    """Return the batches that networks of a seed are trained on."""
    return TrainBatches(
        parts.train,
        batch_size=settings.batch_size,
        seed=seed,
        mean=parts.mean,
        std=parts.std,
        augment=Augment(pad_crop=settings.pad_crop, flip=settings.flip),
        device=device,
    )


def train_job(job: Job, report: Callable[[int, int], bool]) -> None:
    """Train one network and write what came of it; the same job gives the same bits on one kind of machine."""
    settings, parts = job.settings, load_parts(job.data, job.settings)
    batches = batches_of(settings, parts, job.seed)
    total = settings.epochs * batches.steps_per_epoch
    network = make(job).to(job.device)
    optimizer = adamw(network, lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = cosine_schedule(optimizer, steps=total, warmup_steps=round(settings.warmup_share * total))
    loss = partial(F.cross_entropy, label_smoothing=settings.label_smoothing)
    losses: list[float] = []
    curve: list[float] = []
    checks = {round(total * (number + 1) / settings.checks) for number in range(settings.checks)}
    started = time.monotonic()
    steps = train(
        network,
        seeded(batches.steps(0, total), job.seed),
        optimizer,
        loss=loss,
        schedule=schedule,
        clip_norm=settings.clip_norm,
    )
    for step in steps:
        losses.append(step.loss)
        if step.step + 1 in checks:
            curve.append(round(float(_hits(network, parts.val, parts).mean()), 4))
        if report(step.step + 1, total):
            return
    seconds = time.monotonic() - started
    hits = {name: _hits(network, images, parts) for name, images in (("val", parts.val), ("test", parts.test))}
    write_result(job, losses, curve, seconds, hits)


def write_result(
    job: Job,
    losses: Sequence[float],
    val_curve: Sequence[float],
    seconds: float,
    hits: Mapping[str, "np.typing.NDArray[np.bool_]"],
) -> None:
    """Write a network's result: the loss of each step, and what it got right of `val` and `test`."""
    write_json(
        job.path,
        {
            "arch": dict(job.arch),
            "seed": job.seed,
            "settings": json.loads(json.dumps(asdict(job.settings))),
            "losses": [round(float(np.mean(part)), 4) for part in np.array_split(losses, min(CURVE, len(losses)))],
            "val_curve": list(val_curve),
            "seconds": round(seconds, 1),
            "device": job.device,
            "torch": torch.__version__,
            **{name: packed(right) for name, right in hits.items()},
        },
    )


def _hits(network: nn.Module, images: Images, parts: Parts) -> "np.typing.NDArray[np.bool_]":
    batches: Iterator[tuple[Tensor, Tensor]] = iter(eval_batches(images, 500, parts.mean, parts.std))
    return evaluate(network, batches).scores > 0


def packed(hits: "np.typing.NDArray[np.bool_]") -> dict[str, Any]:
    """Return which images a network classified correctly, as JSON values; `unpacked` reads them."""
    return {"images": len(hits), "hits": base64.b64encode(np.packbits(hits).tobytes()).decode()}


def unpacked(record: dict[str, Any]) -> "np.typing.NDArray[np.bool_]":
    """Return which images a network classified correctly, from its result."""
    bits = np.frombuffer(base64.b64decode(record["hits"]), np.uint8)
    return np.unpackbits(bits, count=record["images"]).astype(bool)
