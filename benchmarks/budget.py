"""How fast architectures inside a budget are drawn, and what the tables behind it cost. One core, numpy only."""

import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nasx import Budget, Space, one_of, repeat
from nasx.arch import Value
from nasx.cost import AdditiveCost
from nasx.feasible import Feasible
from recipes.glit.cost import macs
from recipes.glit.space import TABLE2

Row = dict[str, Any]


def draws(n: int = 100_000) -> list[Row]:
    """Return draws a second from GLiT's joint space (198^12) beside plain rejection, by how little is inside."""
    rejection = _rejection_rate(TABLE2, macs)
    rows = []
    for low, high in ((1.38e9, 1.40e9), (1.56e9, 1.58e9), (1.82e9, 1.84e9)):
        budget = Budget(macs, at_least=low, at_most=high)
        inside, seconds, peak = _tabulated(TABLE2, budget)
        share = inside.size / TABLE2.size
        started = time.perf_counter()
        found = list(inside.sample(0, n))
        accessed = time.perf_counter()
        built = sum(len(arch) for arch in found)
        finished = time.perf_counter()
        assert built > 0
        rows.append(
            {
                "MACs": f"{low:.4g} to {high:.4g}",
                "share of the space": share,
                "tabulated in s": seconds,
                "MB for that": peak,
                "draws/s, decoded on access": n / (accessed - started),
                "draws/s, mappings in full": n / (finished - started),
                "rejection, expected/s": rejection * share,
            }
        )
    return rows


def _tabulated(space: Space, budget: Budget) -> tuple[Feasible, float, float]:
    """Return what is inside, the seconds that took, and the most memory in use for it, which a second time finds."""
    started = time.perf_counter()
    inside = space.within(budget)
    seconds = time.perf_counter() - started
    tracemalloc.start()
    space.within(budget)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return inside, seconds, peak / 1e6


def _rejection_rate(space: Space, cost: AdditiveCost, n: int = 5_000) -> float:
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(n):
        cost(space.sample(rng))
    return n / (time.perf_counter() - started)


@dataclass(frozen=True)
class _Spread(AdditiveCost):
    """Costs like a block's MACs: multiples of one divisor, up to a largest one whatever the number of options."""

    options: int
    steps: int = 10_000

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return 0

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return 12_608 * (int(choices["option"]) * self.steps // self.options)


def tables() -> list[Row]:
    """Return seconds and memory of tabulating spaces by blocks and options per block, a window of 1 % in the middle."""
    rows = []
    for options in (9, 36, 198, 2_000):
        for blocks in (12, 24, 48, 96):
            space = Space(block=repeat(Space(option=one_of(*range(options))), blocks))
            cost = _Spread(options)
            middle = 12_608 * cost.steps * blocks / 2
            budget = Budget(cost, at_least=middle * 0.99, at_most=middle * 1.01)
            inside, seconds, peak = _tabulated(space, budget)
            started = time.perf_counter()
            inside.sample(0, 1_000)
            rows.append(
                {
                    "options": options,
                    "blocks": blocks,
                    "tabulated in s": seconds,
                    "1,000 draws in s": time.perf_counter() - started,
                    "acceptance": inside.acceptance,
                    "MB for that": peak,
                }
            )
    return rows
