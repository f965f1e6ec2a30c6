"""Predicted against measured latency of whole networks. One thread; tables and networks are measured in turns."""

import time
from typing import Any

import numpy as np

from nasx.latency import latency_report, measure_latency
from nasx.measure import ViTBlocks
from nasx.train import use_threads
from recipes.glit.model import GLiTConfig, build_in
from recipes.glit.space import GLIT

Row = dict[str, Any]


CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time}  # the same on an idle machine


def networks(networks: int = 50, passes: int = 2) -> list[Row]:
    """Return how well a table of GLiT-Tiny's 36 blocks predicts random networks, one image at a time, pass by pass.

    The thread's own time leaves out what other processes take of a busy machine.
    """
    blocks, archs = ViTBlocks(build_in, GLiTConfig()), GLIT.sample(0, networks)
    rows = []
    for seed in range(passes):
        for name, clock in CLOCKS.items():
            with use_threads(1):
                table = measure_latency(GLIT, blocks, device="cpu", rounds=20, seed=seed, clock=clock)
                report = latency_report(table, blocks, archs, device="cpu", rounds=5, seed=seed, clock=clock)
            rows.append(
                {
                    "device": table.measured_on.device,
                    "clock": name,
                    "measured, ms": float(np.median(report.measured)) / 1000,
                    "median relative error": report.median_error,
                    "bias": report.bias,
                    "correlation": float(np.corrcoef(report.predicted, report.measured)[0, 1]),
                }
            )
    return rows
