"""Training steps of networks with compiled blocks (`retrain.compile`) in turns with the same ones uncompiled."""

import os
import time
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from benchmarks.cases import Case, Row, Run, bench_case, digits_case, tiny_case, training_step
from benchmarks.pairs import Timings, alternate, finish
from nasx.train import compiled_blocks, use_precision, use_threads

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that tells torch where to keep what it has compiled."""


def steps(seconds: float = 4.0, *, cases: Sequence[Case] | None = None) -> list[Row]:
    """Return a row for each size of networks on the CPU, in float32 with one thread; nothing comes from a cache.

    A ratio above 1 says that compiled blocks take longer.
    """
    rows: list[Row] = []
    with use_threads(1), use_precision("float32"):
        for case in cases or (digits_case(), bench_case(), tiny_case(8)):
            with TemporaryDirectory() as directory, patch.dict(os.environ, {CACHE: directory}):
                timed, took = in_turns(case.network, *case.images(), seconds=seconds)
            low, high = timed.spread("compiled", to="plain")
            row = {"network": case.name, "batch": case.batch, "ratio": timed.ratio("compiled", to="plain")}
            rows.append({**row, "quartile 1": low, "quartile 3": high, **repayment(timed, took)})
    return rows


def in_turns(
    build: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    beside: dict[str, Run] | None = None,
    **settings: Any,
) -> tuple[Timings, float]:
    """Time steps `compiled` and `plain`, and others that are given, and return the seconds of compiling too.

    `settings` are those of `alternate`.
    """
    network = build()
    plain = training_step(build(), images, labels)
    with compiled_blocks(network):
        step = training_step(network, images, labels)
        begun = time.perf_counter()
        step()
        finish(images.device)
        took = time.perf_counter() - begun
        functions = {"compiled": step, "plain": plain, **(beside or {})}
        return alternate(functions, device=images.device, **settings), took


def repayment(timed: Timings, took: float) -> Row:
    """Return the seconds of compiling and how many steps it takes to earn them."""
    saved = timed.median("plain") - timed.median("compiled")
    return {"compiling took, s": took, "repaid after steps": took / saved if saved > 0 else float("inf")}
