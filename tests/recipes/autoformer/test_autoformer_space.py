"""Sizes of the paper's spaces, and parameter budgets on them although all blocks share the width."""

from collections import Counter
from itertools import product
from math import factorial, prod

import numpy as np
import pytest

from nasx import Arch, Budget, Space
from nasx.arch import split
from nasx.feasible import attainable
from recipes.autoformer.cost import macs, params
from recipes.autoformer.space import (
    BASE,
    BASE_SUPERNET,
    SMALL,
    SMALL_SUPERNET,
    TINY,
    TINY_CHOICES,
    TINY_SUPERNET,
    AutoFormerSpace,
    uniform,
)


@pytest.mark.parametrize(
    ("space", "widths", "kinds", "depths"),
    [(TINY, 3, 2 * 2, (12, 13, 14)), (SMALL, 3, 3 * 3, (12, 13, 14)), (BASE, 3, 2 * 3, (14, 15, 16))],
    ids=["tiny", "small", "base"],
)
def test_sizes(space: Space, widths: int, kinds: int, depths: tuple[int, ...]) -> None:
    assert space.size == widths * sum(kinds**depth for depth in depths)


def test_names() -> None:
    arch = TINY.sample(0)
    depth = arch["block.count"]
    assert isinstance(depth, int)
    blocks = [f"block.{i}.{name}" for i in range(depth) for name in ("num_heads", "mlp_ratio")]
    assert list(arch) == ["embed_dim", "block.count", *blocks]


def test_uniform_networks_and_the_largest() -> None:
    assert uniform(192, 12, 3, 3.5) in TINY
    assert uniform(320, 14, 5, 4) in SMALL
    assert uniform(624, 16, 10, 3) in BASE
    assert TINY_CHOICES.largest() == uniform(240, 14, 4, 4)
    assert TINY_CHOICES.largest() in TINY


def test_published_sizes_lie_inside() -> None:
    for space, published in ((TINY, 5.8e6), (SMALL, 22.9e6), (BASE, 53.7e6)):
        assert space.within(Budget(params, at_least=published - 5e4, at_most=published + 5e4)).size > 0


def test_supernets_hold_the_largest_networks_of_their_spaces() -> None:
    for space, supernet in ((TINY, TINY_SUPERNET), (SMALL, SMALL_SUPERNET), (BASE, BASE_SUPERNET)):
        largest = attainable(space, params).high_arch
        assert all(largest[name] <= supernet[name] for name in largest)  # type: ignore[operator]
        assert largest["block.count"] == supernet["block.count"]


CHOICES = AutoFormerSpace(embed_dim=(192, 216), depth=(2, 3), num_heads=(3, 4), mlp_ratio=(3.5, 4))


@pytest.mark.parametrize("cost", [params, macs], ids=["params", "macs"])
def test_budgets_are_exact_though_the_width_is_shared(cost: object) -> None:
    space = CHOICES.space()
    costs = sorted(cost(arch) for arch in space)  # type: ignore[operator]
    assert len(costs) == 2 * (4**2 + 4**3)
    for low, high in ((0, 160), (10, 30), (70, 71), (100, 159)):
        budget = Budget(cost, at_least=costs[low], at_most=costs[min(high, 159)])  # type: ignore[arg-type]
        wanted = {arch for arch in space if arch in budget}
        inside = space.within(budget)
        assert inside.size == len(wanted)
        assert set(inside) == wanted
        drawn = Counter(inside.sample(np.random.default_rng(0), 60 * len(wanted)))
        assert set(drawn) == wanted
        assert max(drawn.values()) < 3 * min(drawn.values())  # 60 draws each, give or take


def test_tiny_s_published_budget_is_counted_exactly() -> None:
    low, high = 5_500_000, 6_000_000
    kinds = list(product((3, 4), (3.5, 4)))
    counted = 0
    for width, depth in product((192, 216, 240), (12, 13, 14)):
        one_each = [_block_and_rest(width, depth, heads, ratio) for heads, ratio in kinds]
        rest = one_each[0][1]
        for times in product(range(depth + 1), repeat=3):
            if (last := depth - sum(times)) < 0:
                continue
            numbers = (*times, last)
            total = rest + sum(n * block for n, (block, _) in zip(numbers, one_each, strict=True))
            if low <= total <= high:
                counted += factorial(depth) // prod(factorial(n) for n in numbers)
    inside = TINY.within(Budget(params, at_least=low, at_most=high))
    assert inside.size == counted > 0
    assert all(low <= params(arch) <= high for arch in inside.sample(0, 300))


def _block_and_rest(width: int, depth: int, heads: int, ratio: float) -> tuple[int, int]:
    whole = params(uniform(width, depth, heads, ratio))
    block = whole - params(uniform(width, depth - 1, heads, ratio))
    return block, whole - depth * block


def test_costs_add_up_over_parts() -> None:
    arch: Arch = TINY.sample(3)
    shared, parts = split(arch)
    assert set(shared) == {"embed_dim", "block.count"}
    assert len(parts) == arch["block.count"]
