"""What surrounds the arithmetic: the training loop, checkpoints, scoring, several networks or processes at once."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Case, Row, Run, bench_case, digits_case, tiny_case, training_step
from benchmarks.pairs import alternate
from nasx.data import Augment, TrainBatches, channel_statistics, eval_batches, load_digits
from nasx.nn import Subnet
from nasx.run.checkpoints import Checkpoints, flatten_state
from nasx.train import (
    StackedNetworks,
    adamw,
    cosine_schedule,
    ema,
    evaluate,
    load_into_memory,
    recalibrate,
    recalibrate_and_evaluate,
    seeded,
    stacked_loss,
    train,
    use_threads,
)
from recipes.glit.config import DIGITS
from recipes.glit.supernet import supernet

ENDLESS = 10**9


def steps(seconds: float = 5.0) -> list[Row]:
    """Return steps of `train` over the same arithmetic in a loop of five lines, feature by feature. One thread.

    `share of a step` is what a feature adds.
    """
    rows: list[Row] = []
    with use_threads(1):
        for case in (digits_case(), bench_case()):
            images, labels = case.images()
            constant = partial(_same, images, labels)
            loops: dict[str, Run] = {
                "bare": training_step(case.network(), images, labels),
                "the loop": _loop(case, constant()),
                "clipping too": _loop(case, constant(), clip=True),
                "schedule and seeding too": _loop(case, seeded(constant(), 0), clip=True, scheduled=True),
                "an average too": _loop(case, seeded(constant(), 0), clip=True, scheduled=True, averaged=True),
            }
            if case.name == "digits":
                loops["batches of the digits too"] = _loop(case, seeded(_digits(), 0), clip=True, scheduled=True)
            timed = alternate(loops, seconds=seconds * len(loops))
            for name in loops:
                low, high = timed.spread(name, to="bare")
                ratio = timed.ratio(name, to="bare")
                rows.append({"network": case.name, "loop": name, "ratio": ratio, "quartile 1": low, "quartile 3": high})
    return rows


def _same(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield images, labels


def _digits() -> Iterator[tuple[Tensor, Tensor]]:
    images = load_digits(seed=0).train
    mean, std = channel_statistics(images)
    augment = Augment(**DIGITS.retrain.augment.model_dump())
    batches = TrainBatches(images, batch_size=64, seed=0, mean=mean, std=std, augment=augment)
    return batches.steps(0, ENDLESS)


def _loop(
    case: Case,
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    clip: bool = False,
    scheduled: bool = False,
    averaged: bool = False,
) -> Run:
    network = case.network()
    optimizer = adamw(network, lr=1e-4, weight_decay=0.05)
    taken = train(
        network,
        batches,
        optimizer,
        clip_norm=1.0 if clip else None,
        schedule=cosine_schedule(optimizer, steps=ENDLESS) if scheduled else None,
        average=ema(network, 0.999) if averaged else None,
    )
    return partial(next, taken)


def scoring(seconds: float = 6.0) -> list[Row]:
    """Return candidates of the preset `digits` scored per second, with samples read for each or held. One thread."""
    case, images = digits_case(), load_digits(seed=0)
    config = DIGITS.search
    mean, std = channel_statistics(images.train)
    augment = Augment(**DIGITS.supernet.augment.model_dump())
    training = TrainBatches(
        images.train, batch_size=config.recalibration_batch_size, seed=0, mean=mean, std=std, augment=augment
    )
    with use_threads(1):
        whole = supernet(case.space, case.vit, init_std=case.init_std).eval()
        cpu = torch.device("cpu")
        first = load_into_memory(training.steps(0, config.recalibration_batches), cpu)
        second = load_into_memory(eval_batches(images.val, 512, mean, std), cpu)
        assert first is not None
        assert second is not None

        def read() -> None:
            subnet = Subnet(whole, case.arch)
            recalibrate(subnet, training.steps(0, config.recalibration_batches))
            evaluate(subnet, eval_batches(images.val, 256, mean, std))

        def held() -> None:
            subnet = Subnet(whole, case.arch)
            recalibrate_and_evaluate(subnet, first.batches(config.recalibration_batch_size), second.batches(512))

        timed = alternate(
            {"read": read, "held": held, "making the network": lambda: Subnet(whole, case.arch)}, seconds=seconds
        )
    return [
        {
            "samples": name,
            "candidates/s": 1 / timed.median(name),
            "ratio": timed.ratio(name, to="read"),
            "share of making the network": timed.ratio("making the network", to=name),
        }
        for name in ("read", "held")
    ]


def together(seconds: float = 4.0, device: torch.device | str = "cpu", counts: tuple[int, ...] = (2, 4)) -> list[Row]:
    """Return steps of several small networks as one network over steps one after the other."""
    rows: list[Row] = []
    with use_threads(1):
        for case in (digits_case(), bench_case()):
            images, labels = case.images(device=device)
            for count in counts:
                networks = [case.network(device=device) for _ in range(count)]
                stacked = StackedNetworks(networks).to(device)
                loss, optimizer = stacked_loss(F.cross_entropy), adamw(stacked, lr=1e-4, weight_decay=0.05)
                many = torch.stack([images] * count), torch.stack([labels] * count)
                apart = [training_step(network, images, labels) for network in networks]
                functions: dict[str, Run] = {
                    "apart": partial(_all, apart),
                    "together": partial(_step, stacked, loss, optimizer, *many),
                }
                timed = alternate(functions, seconds=seconds, device=device)
                rows.append(
                    {
                        "network": case.name,
                        "networks": count,
                        "ratio": timed.ratio("together", to="apart"),
                        "networks' images/s": count * case.batch / timed.median("together"),
                    }
                )
    return rows


def _all(steps: list[Run]) -> None:
    for step in steps:
        step()


def _step(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
) -> None:
    loss(model(images), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def checkpoints(seconds: float = 3.0) -> list[Row]:
    """Return what a checkpoint costs: as a share of the training between two of them, at a preset's interval."""
    rows: list[Row] = []
    digits = DIGITS.supernet
    per_epoch = 1150 // digits.batch_size
    # ten of a training; trainings of days write one every ten minutes
    intervals = {"digits": round(digits.epochs * per_epoch / 10), "GLiT-Tiny": 0}
    with use_threads(1), tempfile.TemporaryDirectory() as directory:
        for case in (digits_case(), tiny_case(4)):
            network = case.network()
            optimizer = adamw(network, lr=1e-4, weight_decay=0.05)
            step = training_step(network, *case.images(), optimizer=optimizer)
            step()
            place = Checkpoints(Path(directory) / case.name)

            def save(
                place: Checkpoints = place, network: nn.Module = network, optimizer: torch.optim.Optimizer = optimizer
            ) -> None:
                state = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
                place.save(1, *flatten_state(state))

            timed = alternate({"step": step, "checkpoint": save}, seconds=seconds, wall=True)  # it waits for the disk
            between = intervals[case.name] * timed.median("step") or 600.0
            rows.append(
                {
                    "network": case.name,
                    "checkpoint over step": timed.ratio("checkpoint", to="step"),
                    "share of training": timed.median("checkpoint") / between,
                    "seconds between two": between,
                }
            )
    return rows


def ranks(steps: int = 30) -> list[Row]:
    """Return steps of one process over those of two that share the batch, one thread each (gloo)."""
    found = {}
    for size in (1, 2):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(size),
            "-m",
            "benchmarks.ranks",
        ]
        done = subprocess.run([*command, str(steps)], capture_output=True, text=True, check=True)
        found[size] = json.loads(done.stdout.splitlines()[-1])
    return [
        {"network": name, "processes": 2, "ratio": found[2][name] / found[1][name], "one process, ms": found[1][name]}
        for name in found[1]
    ]
