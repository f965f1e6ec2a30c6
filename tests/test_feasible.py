"""The architectures inside a budget against brute force: counts, draws, children, and every way to tabulate."""

import math
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.arch import Value
from nasx.cost import AdditiveCost, Cost
from nasx.feasible import MAX_BYTES, Feasible, NoneFound, attainable
from nasx.space import ArchSet, EmptySet
from tests.strategies import ToyCost, archs, differing, inherits, spaces

SEEDS = st.integers(0, 2**32)
COSTS = st.builds(ToyCost, st.integers(0, 99), spread=st.sampled_from([2, 5, 20, 1000]), step=st.integers(1, 7))


@st.composite
def windows(draw: st.DrawFn, low: int, high: int) -> tuple[int | None, int | None]:
    """Draw bounds around a range: open, narrow, a single cost, or beyond it."""
    bounds = sorted(draw(st.tuples(*[st.integers(max(0, low - 3), high + 3)] * 2)))
    return draw(st.sampled_from([bounds[0], None])), draw(st.sampled_from([bounds[1], None]))


def _inside(space: Space, *budgets: Budget) -> list[Arch]:
    return [arch for arch in archs(space) if all(arch in budget for budget in budgets)]


# Against brute force


@settings(max_examples=250)
@given(spaces(max_size=60), COSTS, SEEDS, st.data())
def test_counts_draws_and_enumeration(space: Space, cost: ToyCost, seed: int, data: st.DataObject) -> None:
    totals = [cost(arch) for arch in archs(space)]
    budget = Budget(cost, *data.draw(windows(min(totals), max(totals))))
    expected = _inside(space, budget)
    if not expected:
        with pytest.raises(ValueError, match=f"attainable are {min(totals):,} to {max(totals):,} toys"):
            space.within(budget)
        return
    inside = space.within(budget)
    assert inside.size == len(expected)
    assert inside.size_bounds == (len(expected), len(expected))
    assert sorted(arch.to_json() for arch in inside) == sorted(arch.to_json() for arch in expected)
    drawn = [inside.sample(seed), *inside.sample(seed, 5), inside.sample_per_choice(seed)]
    assert {arch.to_json() for arch in drawn} <= {arch.to_json() for arch in expected}
    assert list(inside.sample(seed, 5)) == drawn[1:6]
    assert all((arch in inside) == (arch in budget) for arch in archs(space))
    assert inside.acceptance == 1.0
    least, most = inside.attainable.low_arch, inside.attainable.high_arch
    assert (inside.attainable.low, inside.attainable.high) == (min(totals), max(totals))
    assert (cost(least), cost(most)) == (min(totals), max(totals))
    assert least in space
    assert most in space
    assert attainable(space, cost) == inside.attainable


@settings(max_examples=100)
@given(spaces(max_size=60, min_size=3), COSTS, SEEDS, st.data())
def test_children_stay_inside(space: Space, cost: ToyCost, seed: int, data: st.DataObject) -> None:
    low, high = attainable(space, cost).low, attainable(space, cost).high
    inside = space.within(Budget(cost, at_most=data.draw(st.integers(low, high))))
    first, second = inside.sample(seed, 2)
    assert inside.genes(first) == space.genes(first)
    assert set(inside.neighbours(first)) == set(inside) & set(space.neighbours(first))
    one_gene = inside.mutate(first, seed, probability=1e-9)
    assert one_gene in inside
    assert len(differing(space, first, one_gene)) <= 1
    assert inside.mutate(first, seed, probability=0.5) in inside
    child = inside.crossover(first, second, seed)
    assert child in inside
    assert inherits(space, child, [first, second])
    assert child.to_json() == space.canonical(child).to_json() == inside.canonical(child).to_json()


@settings(max_examples=60)
@given(spaces(max_size=60, min_size=3), SEEDS)
def test_no_budget_at_all_is_the_whole_space(space: Space, seed: int) -> None:
    inside = space.within()
    assert inside.size == space.size
    assert set(inside) == set(space)
    assert inside.sample(seed) in space


# The four ways to tabulate


# Costs up to 2**31 would need gigabytes densely; 1,200 bytes hold neither all sums nor those that occur.
TABLES = {
    "dense": (ToyCost(3, 40), MAX_BYTES),
    "sums that occur": (ToyCost(3, 2**31), MAX_BYTES),
    "buckets": (ToyCost(3, 1000), 1200),
    "buckets of sparse sums": (ToyCost(3, 2**31), 1200),
    "one bucket": (ToyCost(3, 1000), 1),
}
SHARED = Space(
    width=one_of(8, 16),
    block=repeat(Space(op=one_of({"none": None, "conv": Space(k=one_of(3, 5, 7))}), z=one_of(2, 4)), one_of(2, 3)),
)


@pytest.mark.parametrize("table", TABLES)
def test_sampling_is_uniform_over_what_is_inside(table: str) -> None:
    cost, max_bytes = TABLES[table]
    totals = sorted(map(cost, archs(SHARED)))
    budget = Budget(cost, at_least=totals[len(totals) * 5 // 10], at_most=totals[len(totals) * 6 // 10])
    expected = _inside(SHARED, budget)
    inside = Feasible(SHARED, [budget], max_bytes=max_bytes)
    low, high = inside.size_bounds
    assert low <= len(expected) <= high <= SHARED.size
    assert (low == high) == ("bucket" not in table)
    assert inside.size == len(expected)
    counts = Counter(inside.sample(0, 100 * len(expected)))
    assert set(counts) == set(expected) == set(inside)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert (inside.acceptance == 1.0) == ("bucket" not in table)
    assert 0 < inside.acceptance <= 1


@settings(max_examples=100)
@given(
    spaces(max_size=60, min_size=2),
    st.integers(0, 99),
    st.sampled_from([300, 2**31]),
    st.sampled_from([1, 500, 3000]),
    st.data(),
)
def test_buckets_never_let_one_outside(
    space: Space, seed: int, spread: int, max_bytes: int, data: st.DataObject
) -> None:
    cost = ToyCost(seed, spread)
    totals = sorted(map(cost, archs(space)))
    bounds = sorted(data.draw(st.tuples(st.sampled_from(totals), st.sampled_from(totals))))
    budget = Budget(cost, *bounds)
    expected = _inside(space, budget)
    inside = Feasible(space, [budget], max_bytes=max_bytes)
    low, high = inside.size_bounds
    assert low <= len(expected) <= high
    assert inside.size == len(expected)
    assert sorted(arch.to_json() for arch in inside) == sorted(arch.to_json() for arch in expected)
    assert set(inside.sample(seed, 10)) <= set(expected)
    assert inside.sample_per_choice(seed) in inside
    assert inside.mutate(inside.sample(seed), seed, probability=0.5) in inside
    assert 0 < inside.acceptance <= 1


def test_a_mutation_of_every_gene_is_a_uniform_draw() -> None:
    inside = Space(block=SHARED.nodes["block"]).within(Budget(ToyCost(5, 9), at_least=8, at_most=9))
    rng = np.random.default_rng(0)
    parent = inside.sample(0)
    counts = Counter(inside.mutate(parent, rng, probability=1.0) for _ in range(20 * inside.size))
    assert set(counts) == set(inside)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_crossover_is_uniform_over_the_children_inside() -> None:
    space = Space(block=repeat(Space(w=one_of(*range(8))), 5))
    budget = Budget(Total(), at_most=20)
    first, second = (Arch({f"block.{i}.w": w for i, w in enumerate(row)}) for row in ((7, 0, 7, 0, 6), (0, 7, 1, 5, 2)))
    children = _inside(space.crossings(first, second), budget)
    assert 8 < len(children) < 32
    inside, rng = space.within(budget), np.random.default_rng(0)
    counts = Counter(inside.crossover(first, second, rng) for _ in range(60 * len(children)))
    assert set(counts) == set(children)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_sampling_per_choice_is_uniform_over_the_options_still_open() -> None:
    budget = Budget(ToyCost(2, 40), at_least=50, at_most=60)
    space = SHARED.pin({"block.count": 2})
    expected = _one_choice_after_another([list(arch.items()) for arch in _inside(space, budget)])
    inside, rng = space.within(budget), np.random.default_rng(0)
    counts = Counter(inside.sample_per_choice(rng) for _ in range(4000))
    assert set(counts) <= set(expected)
    assert len(set(expected.values())) > 3
    chances = [4000 * chance for chance in expected.values()]
    assert stats.chisquare([counts[arch] for arch in expected], chances).pvalue > 1e-3


def _one_choice_after_another(
    left: Sequence[Sequence[tuple[str, Value]]], place: int = 0, chance: float = 1.0
) -> dict[Arch, float]:
    if len(left) == 1:
        return {Arch(dict(left[0])): chance}
    options = {items[place][1]: [other for other in left if other[place] == items[place]] for items in left}
    found: dict[Arch, float] = {}
    for rest in options.values():
        found |= _one_choice_after_another(rest, place + 1, chance / len(options))
    return found


# Large spaces


class Total(AdditiveCost):
    """The sum of what each part's `w` is worth."""

    unit = "MACs"

    def __init__(self, worth: Callable[[int], int] = int) -> None:
        self.worth = worth

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return 0

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return self.worth(int(choices["w"]))


def _ways(times: Mapping[int, int], parts: int) -> Callable[[int], int]:
    """Return how often each total occurs, from a power of one long integer that packs the polynomial."""
    width = (sum(times.values()) ** parts).bit_length()
    power = sum(count << (width * worth) for worth, count in times.items()) ** parts
    return lambda total: (power >> (width * total)) & ((1 << width) - 1)


@pytest.mark.parametrize(("options", "parts"), [(7, 5), (300, 20), (2000, 96)])
def test_counts_are_exact_far_beyond_floats(options: int, parts: int) -> None:
    space = Space(block=repeat(Space(w=one_of(*range(options))), parts))

    def worth(w: int) -> int:
        return 1000 * (w * w % 29)

    cost = Total(worth)
    ways = _ways(Counter(worth(w) // 1000 for w in range(options)), parts)
    assert space.within().size == space.within(Budget(cost, at_least=0)).size == options**parts
    middle = 1000 * 12 * parts
    inside = space.within(Budget(cost, at_least=middle - 1500, at_most=middle + 999))
    assert inside.size == ways(middle // 1000 - 1) + ways(middle // 1000)
    assert all(middle - 1500 <= cost(arch) <= middle + 999 for arch in inside.sample(0, 200))
    most = 28 * 1000 * parts
    greatest = space.within(Budget(cost, at_least=inside.attainable.high))
    assert greatest.size == ways(inside.attainable.high // 1000)
    assert inside.attainable.high <= most
    assert cost(greatest.sample(0)) == inside.attainable.high


class GLiTTinyMACs(AdditiveCost):
    """The MACs of GLiT-Tiny's networks: 12 blocks of 3 heads, width 192, 197 tokens (paper, section 3)."""

    unit = "MACs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return 196 * 192 * 768 + 192 * 1000

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        of = {name: float(value) for name, value in choices.items()}
        wide, narrow = 64 * of["global_heads"], 64 * (3 - of["global_heads"])  # channels of attention, convolution
        total = 2 * 197 * 192 * 192 * of["mlp_ratio"]
        if wide:
            queries = wide * of["qkv_ratio"]
            total += 4 * 197 * wide * queries + 2 * 197 * 197 * queries
        if narrow:
            total += 197 * narrow * of["expansion"] * (3 * narrow + of["kernel_size"])
        return int(total)


def test_the_budget_of_the_glit_paper_is_counted_exactly() -> None:
    kernels = Space(kernel_size=one_of(17, 31, 45), expansion=one_of(1, 2, 4))
    ratios = Space(qkv_ratio=one_of(0.5, 1.0, 2.0), mlp_ratio=one_of(2, 4, 6))
    mixed = Space(**kernels.nodes, **ratios.nodes)
    local = Space(**kernels.nodes, mlp_ratio=one_of(2, 4, 6))
    block = Space(global_heads=one_of({0: local, 1: mixed, 2: mixed, 3: ratios}))
    space, cost = Space(block=repeat(block, 12)), GLiTTinyMACs()
    inside = space.within(Budget(cost, at_least=1.38e9, at_most=1.40e9))
    assert (inside.attainable.low, inside.attainable.high) == (546_374_400, 2_202_309_120)
    assert round(100 * inside.size / space.size, 4) == 0.9394

    # Once more as a polynomial: blocks cost a multiple of 12,608 MACs more than the cheapest block.
    costs = [cost.part("block", 0, {}, choices) for choices in block]
    ways = _ways(Counter((c - min(costs)) // 12_608 for c in costs), 12)
    steps = [math.ceil((bound - inside.attainable.low) / 12_608) for bound in (1.38e9, 1.40e9)]
    assert inside.size == sum(map(ways, range(*steps)))
    assert all(1.38e9 <= cost(arch) <= 1.40e9 for arch in inside.sample(0, 500))


def test_a_part_of_many_distinct_costs_is_bucketed_and_still_never_outside() -> None:
    space = Space(block=repeat(Space(w=one_of(*range(2000))), 96))
    cost = Total(lambda w: w)
    inside = Feasible(space, [Budget(cost, at_least=85_000, at_most=96_000)], max_bytes=64 << 20)
    low, high = inside.size_bounds
    assert 0 < low < high < 2000**96
    assert all(arch in inside for arch in inside.sample(0, 50))
    assert 0 < inside.acceptance < 1
    with pytest.raises(ValueError, match="size_bounds"):
        _ = inside.size


def test_draws_beyond_floats_have_the_exact_marginal() -> None:
    space = Space(block=repeat(Space(w=one_of(*range(8))), 60))
    inside = space.within(Budget(Total(), at_least=200, at_most=200))
    rest = _ways(Counter(range(8)), 59)
    chances = np.array([rest(200 - w) / inside.size for w in range(8)])
    for part in (0, 30, 59):
        counts = Counter(arch[f"block.{part}.w"] for arch in inside.sample(part, 4000))
        assert stats.chisquare([counts[w] for w in range(8)], 4000 * chances).pvalue > 1e-3


# Further budgets


def _distinct(arch: Arch) -> int:
    """A cost without parts: how many different values an architecture has."""
    return len(set(arch.values()))


@settings(max_examples=80)
@given(spaces(max_size=60, min_size=2), COSTS, SEEDS, st.booleans())
def test_further_budgets_filter(space: Space, cost: ToyCost, seed: int, first: bool) -> None:
    anchor = space.sample(seed)
    exact = Budget(cost, at_most=cost(anchor))
    others = [Budget(_distinct, at_least=_distinct(anchor)), Budget(ToyCost(seed % 7, 30), at_most=100)]
    budgets = [exact, *others] if first else [*others[:1], exact, *others[1:]]
    expected = _inside(space, *budgets)
    if not expected:
        with pytest.raises(ValueError, match="loosen"):
            Feasible(space, budgets, max_tries=20).sample(seed)
        return
    inside = space.within(*budgets)
    assert sorted(arch.to_json() for arch in inside) == sorted(arch.to_json() for arch in expected)
    assert inside.size == len(expected)
    assert inside.size_bounds[0] <= len(expected) <= inside.size_bounds[1]
    drawn = [*inside.sample(seed, 10), inside.sample_per_choice(seed), inside.mutate(expected[0], seed, 0.5)]
    drawn.append(inside.crossover(expected[0], expected[-1], seed))
    assert set(drawn) <= set(expected)
    assert 0 < inside.acceptance <= 1


def test_filtered_draws_are_uniform_too() -> None:
    budgets = Budget(ToyCost(4, 40), at_most=80), Budget(_distinct, at_most=4)
    expected = _inside(SHARED, *budgets)
    inside = SHARED.within(*budgets)
    counts = Counter(inside.sample(0, 100 * len(expected)))
    assert set(counts) == set(expected)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    share = len(expected) / SHARED.within(budgets[0]).size
    assert abs(inside.acceptance - share) < 0.02


@settings(max_examples=100)
@given(spaces(max_size=60, min_size=3), st.lists(COSTS, min_size=2, max_size=3, unique=True), SEEDS, st.data())
def test_budgets_on_additive_costs_are_met_together(
    space: Space, costs: list[ToyCost], seed: int, data: st.DataObject
) -> None:
    budgets = []
    for cost in costs:
        totals = [cost(arch) for arch in archs(space)]
        budgets.append(Budget(cost, *data.draw(windows(min(totals), max(totals)))))
    expected = _inside(space, *budgets)
    if not expected:
        with pytest.raises(EmptySet, match=r"attainable|at once, though some meet each of them; change"):
            space.within(*budgets)
        return
    inside = space.within(*budgets)
    assert inside.size == len(expected)
    assert inside.size_bounds == (len(expected), len(expected))
    assert sorted(arch.to_json() for arch in inside) == sorted(arch.to_json() for arch in expected)
    first, second = inside.sample(seed, 2)
    drawn = [*inside.sample(seed, 20), inside.sample_per_choice(seed), inside.mutate(first, seed, 0.5)]
    assert {*drawn, inside.crossover(first, second, seed)} <= set(expected)
    assert inside.acceptance == 1.0


def test_what_one_architecture_of_a_billion_meets_is_found() -> None:
    space = Space(block=repeat(Space(w=one_of(*range(8))), 10))
    heavy, light = Total(lambda w: w * w), Total(lambda w: 10 * w)
    inside = space.within(Budget(heavy, at_least=490), Budget(light, at_most=700))  # ten of 7, at 70 each
    assert inside.size == 1
    assert set(inside.sample(0, 5)) == set(inside) == {Arch({f"block.{i}.w": 7 for i in range(10)})}
    assert inside.mutate(inside.sample(0), 0, 1.0) in inside
    with pytest.raises(EmptySet, match=r"inside the first, 700 to 700 MACs are attainable"):
        space.within(Budget(heavy, at_least=490), Budget(light, at_most=699))


@pytest.mark.parametrize("max_tries", [1000, 2])
def test_children_meet_all_budgets_that_their_parents_meet_together(max_tries: int) -> None:
    """Fewer combinations of sums are listed for children than for a set, which must not lose a budget."""
    space, both = Space(block=repeat(Space(w=one_of(*range(8))), 10)), []
    for cost in (ToyCost(1, 400), ToyCost(2, 400)):
        middle = (attainable(space, cost).low + attainable(space, cost).high) // 2
        both.append(Budget(cost, middle - 20, middle + 20))
    inside = Feasible(space, both, max_tries=max_tries)
    assert inside.size_bounds == (inside.size, inside.size)  # both are met exactly
    rng = np.random.default_rng(0)
    first, second = inside.sample(0, 2)
    children = [inside.mutate(first, rng, 1.0) for _ in range(5)] + [inside.crossover(first, second, rng)]
    assert all(arch in budget for arch in children for budget in both)
    assert len(set(children)) == 6


def test_where_too_many_sums_occur_together_the_first_budget_is_exact_and_others_filter() -> None:
    space = Space(block=repeat(Space(w=one_of(*range(100))), 12))
    rng = np.random.default_rng(0)
    worth = rng.integers(0, 10**6, 100).tolist()
    inside = space.within(
        Budget(Total(), at_least=590, at_most=600), Budget(Total(lambda w: int(worth[w])), at_most=5_900_000)
    )
    assert inside.size_bounds[0] == 0 < inside.size_bounds[1]
    drawn = inside.sample(0, 200)
    assert all(arch in inside for arch in drawn)
    assert 0.1 < inside.acceptance < 0.9


def test_a_filter_alone_filters_the_whole_space() -> None:
    budget = Budget(_distinct, at_most=4)
    inside = SHARED.within(budget)
    assert set(inside) == set(_inside(SHARED, budget))
    assert all(arch in inside for arch in inside.sample(0, 50))


def test_a_predicate_filters_like_a_budget() -> None:
    first = Budget(ToyCost(4, 40), at_most=80)
    by_budget = SHARED.within(first, Budget(_distinct, at_most=4))
    by_predicate = SHARED.within(first).where(lambda arch: _distinct(arch) <= 4)
    assert set(by_predicate) == set(by_budget)
    assert list(by_predicate.sample(0, 50)) == list(by_budget.sample(0, 50))
    assert set(SHARED.where(lambda arch: arch["width"] == 8)) == set(SHARED.pin({"width": 8}))
    outside = next(arch for arch in SHARED.within(first) if _distinct(arch) > 4)
    assert outside not in by_predicate
    with pytest.raises(ValueError, match="does not pass the predicate"):
        by_predicate.canonical(outside)


@pytest.mark.parametrize(
    "space",
    [
        Space(**{f"edge{i}": one_of(*range(8)) for i in range(6)}),
        Space(block=repeat(Space(**{f"edge{i}": one_of(*range(8)) for i in range(7)}), 2)),
    ],
    ids=["choices outside of parts", "one large part"],
)
def test_what_only_filters_needs_no_table(space: Space) -> None:
    """No space is too large for a predicate or a plain function, whatever an additive cost could not tabulate."""
    choices = len(space[0])
    by_budget = space.within(Budget(_sum, at_most=3 * choices))
    by_predicate = space.where(lambda arch: _sum(arch) <= 3 * choices)
    for inside in (by_budget, by_predicate):
        drawn = [inside.sample(0), *inside.sample(1, 20), inside.sample_per_choice(2)]
        drawn += [inside.mutate(drawn[0], 3, 0.3), inside.crossover(drawn[0], drawn[1], 4)]
        assert all(arch in space and _sum(arch) <= 3 * choices for arch in drawn)
        assert inside.sample(1, 20) == inside.sample(1, 20)
        assert 0 < inside.acceptance < 1
        assert inside.size_bounds == (0, space.size)
        with pytest.raises(ValueError, match=r"the exact count is not known: between 0 and \d+ architectures"):
            _ = inside.size
        assert space[space.size - 1] not in inside
    assert by_budget.sample(1, 20) == by_predicate.sample(1, 20)
    assert space.within().size == space.size


def test_filtered_draws_of_choices_outside_of_parts_are_uniform() -> None:
    space = Space(**{f"edge{i}": one_of(*range(4)) for i in range(3)}, op=one_of({"none": None, "conv": Space(k=3)}))
    inside = space.within(Budget(_sum, at_most=2))
    counts = Counter(inside.sample(0, 200 * inside.size))
    assert set(counts) == set(inside) == {arch for arch in archs(space) if _sum(arch) <= 2}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def _sum(arch: Arch) -> int:
    return sum(int(value) for name, value in arch.items() if "edge" in name)


def test_what_filters_is_asked_once_for_an_architecture() -> None:
    asked: Counter[Arch] = Counter()

    def slow(arch: Arch) -> float:
        asked[arch] += 1
        return _distinct(arch)

    inside = SHARED.within(Budget(slow, at_most=4))
    for _ in range(3):
        assert list(inside) == _inside(SHARED, Budget(_distinct, at_most=4))
    inside.sample(0, 500)
    assert set(asked.values()) == {1}


def test_threads_may_filter_draws_of_one_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of filters is forgotten at times, which another thread must not notice."""
    monkeypatch.setattr("nasx._filters._MAX_KNOWN", 1)
    inside = Space(w=one_of(*range(100))).where(lambda arch: True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            drawn = list(pool.map(partial(inside.sample, n=5000), range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert [len(row) for row in drawn] == [5000] * 4


def test_an_equal_architecture_of_other_types_is_filtered_as_the_space_writes_it() -> None:
    def listed(arch: Arch) -> bool:
        return str(arch["width"]) in {"16", "32"}

    space = Space(width=one_of(16, 32, 64))
    some = space.where(listed)
    costly = space.within(Budget(lambda arch: len(str(arch["width"])), at_most=2))
    for inside, widths in ((some, [16, 32]), (costly, [16, 32, 64])):
        assert Arch({"width": 16.0}) in inside
        assert {"width": 16.0} in inside
        assert Arch({"width": 16}) in inside
        assert [arch["width"] for arch in inside] == widths
        assert inside.size == len(widths)
    assert Arch({"width": 64.0}) not in some
    for other in ({"width": 8}, {"depth": 8}, {}, 16, None):
        assert other not in some


# Every set of architectures


@settings(max_examples=60)
@given(spaces(max_size=60, min_size=3), COSTS, SEEDS)
def test_spaces_and_what_is_inside_budgets_offer_the_same(space: Space, cost: ToyCost, seed: int) -> None:
    middle = cost(space.sample(seed))
    sets: list[ArchSet] = [space, space.within(Budget(cost, at_most=middle)), space.where(lambda arch: True)]
    for archset in sets:
        members = list(archset)
        assert archset.space == space
        assert archset.size_bounds[0] <= archset.size == len(members) <= archset.size_bounds[1]
        assert archset.acceptance == archset.with_fresh_counts().acceptance == 1.0
        assert set(archset.within(Budget(cost, at_most=middle))) == set(_inside(space, Budget(cost, at_most=middle)))
        first = archset.sample(seed)
        assert archset.genes(first) == space.genes(first)
        assert set(archset.neighbours(first)) == set(members) & set(space.neighbours(first))
        assert list(archset.pin(first)) == [first]
        assert list(archset.where(lambda arch, only=first: arch == only)) == [first]  # type: ignore[misc]
        assert {archset.mutate(first, seed, 0.5), archset.crossover(first, members[-1], seed)} <= set(members)
        assert archset.sample_per_choice(seed) in archset
        assert archset.canonical(first) == first
    assert [len(archset.budgets) for archset in sets] == [0, 1, 0]
    assert [len(archset.predicates) for archset in sets] == [0, 0, 1]


def test_budgets_on_one_cost_are_one_budget() -> None:
    space = Space(block=repeat(Space(w=one_of(*range(8))), 4))
    cost = ToyCost(1, 9)
    twice = space.within(Budget(cost, at_most=20)).within(Budget(ToyCost(1, 9), at_least=12, at_most=25))
    assert twice.budgets == (Budget(cost, 12, 20),)
    assert twice.size == space.within(Budget(cost, 12, 20)).size
    assert twice.size_bounds[0] == twice.size  # nothing filters
    contradiction = r"`floor <= at_most` must hold, but got floor=21 and at_most=20; change one of them"
    reach = attainable(space, cost)
    with pytest.raises(EmptySet, match=f"{contradiction}; attainable are {reach.low} to {reach.high} toys$"):
        space.within(Budget(cost, at_most=20), Budget(cost, at_least=21, names=("floor", "ceiling")))
    with pytest.raises(EmptySet, match=r"no architecture meets both at least 3 and at most 2: .*; change one of them$"):
        space.within(Budget(_distinct, at_least=3)).within(Budget(_distinct, at_most=2))


def test_a_set_says_its_conditions() -> None:
    assert repr(SHARED.within()) == f"Feasible({SHARED!r})"
    inside = SHARED.within(Budget(ToyCost(1, 9), at_most=20)).where(_named)
    assert repr(inside) == f"Feasible({SHARED!r}, at most 20 toys; the predicate _named)"


def _named(arch: Arch) -> bool:
    return True


@dataclass(frozen=True)
class Weighted(AdditiveCost):
    """A cost whose comparison with another is no bool."""

    weights: np.ndarray[Any, Any]

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return 0

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return int(self.weights @ [int(choices["w"]), 1])


@dataclass(frozen=True)
class Scaled:
    """The same of a cost that only filters."""

    weights: np.ndarray[Any, Any]

    def __call__(self, arch: Arch) -> float:
        return float(self.weights[0] * sum(int(value) for value in arch.values()))


@pytest.mark.parametrize("cost", [Weighted, Scaled])
def test_budgets_on_costs_that_hold_arrays_hold_together(cost: Callable[[Any], Cost]) -> None:
    space = Space(block=repeat(Space(w=one_of(*range(8))), 2))
    low, high = Budget(cost(np.array([2, 3])), at_least=10), Budget(cost(np.array([2, 3])), at_most=20)
    assert set(space.within(low, high)) == {arch for arch in space if arch in low and arch in high} != set()
    assert set(space.within(low).within(high)) == set(space.within(low, high))


@pytest.mark.parametrize("table", TABLES)
def test_draws_inside_a_budget_can_be_pickled(table: str) -> None:
    cost, max_bytes = TABLES[table]
    drawn = Feasible(SHARED, [Budget(cost, at_least=min(map(cost, archs(SHARED))))], max_bytes=max_bytes).sample(0, 6)
    for row in (drawn, drawn[1:5:2]):
        assert list(pickle.loads(pickle.dumps(row))) == list(row)


# Messages


def test_an_empty_budget_names_the_attainable_range() -> None:
    space = Space(block=repeat(Space(w=one_of(10**6, 2 * 10**6)), 4))
    with pytest.raises(ValueError, match=r"4,000,000 to 8,000,000 MACs") as refused:
        space.within(Budget(Total(), at_least=5_000_001, at_most=5_999_999))
    assert "1.4G" not in str(refused.value)
    with pytest.raises(ValueError, match=r"change budget\.macs \(write 1\.4G for 1,400,000,000, or 40% "):
        space.within(Budget(Total(), at_most=6, names=("budget.least", "budget.macs")))
    with pytest.raises(ValueError, match=r"4,000,000 to 8,000,000 MACs"):
        space.within(Budget(Total(), at_least=1e30))


def test_an_architecture_outside_has_its_cost_in_the_message() -> None:
    inside = Space(block=repeat(Space(w=one_of(1, 2)), 4)).within(Budget(Total(), at_most=5))
    with pytest.raises(ValueError, match=r"8 MACs, outside at most 5 MACs"):
        inside.canonical({f"block.{i}.w": 2 for i in range(4)})
    with pytest.raises(ValueError, match=r"block\.0\.w"):
        inside.canonical({})
    assert {} not in inside


@pytest.mark.parametrize("cost", [0.5, 2**63, 2**70, "1"], ids=repr)
def test_costs_are_machine_integers(cost: object) -> None:
    space = Space(block=repeat(Space(w=one_of(1, 2)), 4))
    with pytest.raises(TypeError, match="whole numbers of at most 63 bits"):
        space.within(Budget(Total(lambda w: cost)))  # type: ignore[arg-type,return-value]


def test_large_costs_add_up_exactly() -> None:
    space = Space(block=repeat(Space(w=one_of(1, 2)), 4))
    inside = space.within(Budget(Total(lambda w: w * 2**59), at_least=5 * 2**59))
    assert inside.size == 15
    assert inside.attainable.high == 8 * 2**59
    assert inside.sample_per_choice(0) in inside


def test_what_no_table_holds_is_refused() -> None:
    loose = {f"c{i}": one_of(1, 2) for i in range(20)}
    with pytest.raises(ValueError, match=r"1,048,576.*put choices that add up into a repeat, or give .* plain"):
        Space(**loose, block=repeat(Space(w=1), 2)).within(Budget(Total(), at_most=5))
    with pytest.raises(ValueError, match=r"'block' has 1,048,576 .* offer fewer, or give the cost as a plain function"):
        Space(block=repeat(Space(w=1, **loose), 2)).within(Budget(Total(), at_most=5))


def test_equal_parts_keep_their_own_number_types() -> None:
    space = Space(a=repeat(Space(w=one_of(1, 2)), 1), b=repeat(Space(w=one_of(1.0, 2.0)), 1))
    assert [arch.to_json() for arch in space.within()] == [arch.to_json() for arch in space]


def test_acceptance_counts_children_and_can_be_counted_afresh() -> None:
    space = Space(block=repeat(Space(w=one_of(*range(8))), 4))

    class Sum(AdditiveCost):
        def fixed(self, shared: Mapping[str, Value]) -> int:
            return 0

        def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
            return int(choices["w"])

    even = Budget(lambda arch: sum(map(int, arch.values())) % 4, at_most=0)
    inside = space.within(Budget(Sum(), at_most=20), even)
    arch = inside.sample(0)
    drawn = inside.acceptance
    fresh = inside.with_fresh_counts()
    assert fresh.acceptance == 1.0
    rng = np.random.default_rng(0)
    for _ in range(200):
        fresh.mutate(arch, rng, 0.5)
    assert 0.1 < fresh.acceptance < 0.6  # about a quarter
    assert inside.acceptance == drawn
    assert fresh.size_bounds == inside.size_bounds


def test_a_further_budget_that_nothing_meets_is_refused_with_its_range() -> None:
    space = Space(block=repeat(Space(w=one_of(*range(1, 8))), 4))
    for further in (Budget(Total(), at_least=1000), Budget(Total(), at_most=3)):
        with pytest.raises(ValueError, match="holds no architecture of this space; attainable are 4 to 28 MACs"):
            space.within(Budget(Total(), at_most=20), further)


@pytest.mark.parametrize("bounds", [(42, 48), ("69%", "81%")])
def test_a_budget_between_two_attainable_costs_is_refused_with_both(bounds: tuple[Any, Any]) -> None:
    space = Space(base=one_of(0, 1), block=repeat(Space(w=one_of(10, 20)), 3))
    costs = sorted({Total()(arch) for arch in space})
    low, high = (bound if isinstance(bound, int) else float(bound[:-1]) * costs[-1] / 100 for bound in bounds)
    below, above = max(c for c in costs if c < low), min(c for c in costs if c > high)
    with pytest.raises(EmptySet, match=f"attainable are 30 to 60 MACs, the nearest of them {below} and {above}; ch"):
        space.within(Budget(Total(), *bounds))


def test_the_range_of_a_cost_needs_sums_and_a_whole_space() -> None:
    with pytest.raises(TypeError, match="known of an AdditiveCost only, but got <function _distinct"):
        attainable(SHARED, _distinct)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a whole Space, but got Feasible.*pass its `.space`"):
        attainable(SHARED.within(), Total())  # type: ignore[arg-type]


def test_the_range_of_a_cost_that_only_filters_is_not_known() -> None:
    for inside in (SHARED.within(Budget(_distinct, at_most=4)), SHARED.within()):
        with pytest.raises(ValueError, match="the attainable range is not known"):
            _ = inside.attainable


def test_a_filter_that_nothing_meets_is_refused_at_once_with_what_was_met() -> None:
    asked = 0

    def layers(arch: Arch) -> int:
        nonlocal asked
        asked += 1
        return 100 + len(arch)

    space = Space(block=repeat(Space(w=one_of(*range(8))), one_of(4, 5)))
    with pytest.raises(
        NoneFound, match=r"none of 1,000 architectures drawn meets at most 10 \(those drawn had 105 to 106\)"
    ):
        space.within(Budget(layers, at_most=10))
    assert asked <= 1000
    with pytest.raises(NoneFound, match=r"drawn inside at most 20 toys meets at most 10 .*; loosen at_most"):
        space.within(Budget(ToyCost(1, 9), at_most=20), Budget(layers, at_most=10))
    with pytest.raises(NoneFound, match=r"drawn meets the predicate _never; loosen the predicate"):
        space.where(_never)


def _never(arch: Arch) -> bool:
    return False


def test_a_cost_in_place_of_a_budget_is_refused_with_the_mend() -> None:
    with pytest.raises(TypeError, match=r"got 40; write Budget\(cost, at_most=40\), with a cost such as"):
        SHARED.within(40)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"write Budget\(total, at_most=\.\.\.\)"):
        SHARED.within(Total())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"write Budget\(_distinct, at_most=\.\.\.\)"):
        SHARED.within(_distinct)  # type: ignore[arg-type]
    budgets = [Budget(Total(), at_most=5), Budget(_distinct, at_most=5)]
    for several in (budgets, tuple(budgets), iter(budgets)):
        with pytest.raises(TypeError, match=r"takes budgets one by one, .*; write within\(\*budgets\)"):
            SHARED.within(several)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a budget's cost is called with an architecture, but got 400"):
        Budget(400)  # type: ignore[arg-type]


@settings(max_examples=80)
@given(spaces(max_size=60, min_size=2), COSTS, COSTS, SEEDS)
def test_two_additive_budgets_that_do_not_meet_are_refused_with_the_range_inside(
    space: Space, one: ToyCost, other: ToyCost, seed: int
) -> None:
    first = Budget(one, at_most=one(space.sample(seed)))
    costs = [other(arch) for arch in _inside(space, first)]
    reach = attainable(space, other)
    beyond = Budget(other, at_least=max(costs) + 1)
    if one != other and reach.high > max(costs):
        with pytest.raises(EmptySet, match=f"inside the first, {min(costs):,} to {max(costs):,} toys are attainable"):
            space.within(first, beyond)
    assert set(space.within(first, Budget(other, at_least=max(costs)))) == set(
        _inside(space, first, Budget(other, at_least=max(costs)))
    )


def test_a_mutation_of_some_genes_is_uniform_over_the_children_inside() -> None:
    budget = Budget(Total(), at_least=10, at_most=14)
    space = Space(block=repeat(Space(w=one_of(*range(8))), 4))
    parent = Arch({f"block.{i}.w": w for i, w in enumerate((1, 7, 2, 3))})
    narrowed = space.mutations(parent, ["block.1.w", "block.3.w"])
    children = _inside(narrowed, budget)
    assert 10 < len(children) < 64
    drawn = Counter(narrowed.within(budget).sample(0, 60 * len(children)))
    assert set(drawn) == set(children)
    assert stats.chisquare(list(drawn.values())).pvalue > 1e-3
