"""What 2-D relative positions add to a training step. One process, one thread, both kinds of step in turn."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from nasx.train import adamw, use_threads
from recipes.autoformer.model import build
from recipes.autoformer.space import uniform

Row = dict[str, Any]


def steps(repeats: int = 7) -> list[Row]:
    """Return seconds of a training step without and with relative positions, and the median ratio of neighbours.

    Images have the published 224 pixels; the networks are the narrowest and the largest of AutoFormer-Tiny's space.
    What is done once a step rather than for each image weighs more in small batches.
    """
    narrow, wide = ("192 wide, 12 deep", uniform(192, 12, 3, 3.5)), ("240 wide, 14 deep", uniform(240, 14, 4, 4))
    rows = []
    for (name, arch), batch in ((narrow, 8), (narrow, 32), (wide, 8), (wide, 32)):
        torch.manual_seed(0)
        images, labels = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
        with use_threads(1):
            without, having = (
                _step(build(arch, relative_positions=relative), images, labels) for relative in (False, True)
            )
            pairs = [(_seconds(without), _seconds(having)) for _ in range(2 + repeats)][2:]  # two to warm up
        rows.append(
            {
                "network": name,
                "batch": batch,
                "without, s": median(first for first, _ in pairs),
                "with, s": median(second for _, second in pairs),
                "ratio": median(second / first for first, second in pairs),
            }
        )
    return rows


def _step(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = adamw(model, lr=1e-3, weight_decay=0.05)

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started
