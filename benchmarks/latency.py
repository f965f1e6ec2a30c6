"""Predicted against measured latency of whole networks. One thread; tables and networks are measured in turns."""

from typing import Any

import numpy as np

from nasx.latency import latency_report, measure_latency
from nasx.train import use_threads
from recipes.glit.latency import GLiTBlocks
from recipes.glit.space import GLIT

Row = dict[str, Any]


def networks(networks: int = 50, passes: int = 3) -> list[Row]:
    """Return, pass by pass, how well a table of GLiT-Tiny's 36 blocks predicts random networks, one image at a time."""
    blocks, archs = GLiTBlocks(), GLIT.sample(0, networks)
    rows = []
    for number in range(passes):
        with use_threads(1):
            table = measure_latency(GLIT, blocks, rounds=20, seed=number)
            report = latency_report(table, blocks, archs, rounds=5, seed=number)
        rows.append(
            {
                "pass": number,
                "device": table.measured_on.device,
                "blocks": len(table.part_times),
                "networks": networks,
                "measured, ms": float(np.median(report.measured)) / 1000,
                "median relative error": report.median_error,
                "bias": report.bias,
                "correlation": float(np.corrcoef(report.predicted, report.measured)[0, 1]),
            }
        )
    return rows
