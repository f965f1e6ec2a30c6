"""Rows of options whose costs add up to a sum inside a window, against brute force."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nasx.sums import Ints, SumTable

COSTS = st.one_of(st.integers(-20, 20), st.integers(0, 6).map(lambda n: 1000 * n), st.integers(0, 2**40))
SLOTS = st.lists(st.lists(COSTS, min_size=1, max_size=4), min_size=0, max_size=4)
BYTES = st.sampled_from([1, 300, 1200, 1 << 20])  # buckets, and none


def _rows(slots: list[list[int]], low: float, high: float) -> list[tuple[int, ...]]:
    options = [range(len(slot)) for slot in slots]
    return [row for row in itertools.product(*options) if low <= _total(slots, row) <= high]


def _total(slots: list[list[int]], row: tuple[int, ...]) -> int:
    return sum(slot[i] for slot, i in zip(slots, row, strict=True))


def _arrays(slots: list[list[int]]) -> list[Ints]:
    return [np.array(slot, dtype=np.int64) for slot in slots]


@settings(max_examples=300)
@given(SLOTS, BYTES, st.integers(0, 99), st.data())
def test_counts_rows_and_draws_are_those_of_brute_force(
    slots: list[list[int]], max_bytes: int, seed: int, data: st.DataObject
) -> None:
    totals = sorted(_total(slots, row) for row in itertools.product(*(range(len(slot)) for slot in slots)))
    bounds = st.sampled_from([-np.inf, *totals, totals[0] - 5, totals[-1] + 5, np.inf])
    low, high = sorted(data.draw(st.tuples(bounds, bounds)))
    expected = _rows(slots, low, high)
    table = SumTable.of(_arrays(slots), low, high, max_bytes=max_bytes)
    least, most = table.count_bounds()
    assert least <= len(expected) <= most
    assert table.bucketed or least == most
    assert table.bucketed or table.empty == (not expected)
    assert [tuple(row) for row in map(list, table.enumerate())] == expected
    if expected:
        rows, inside = table.draw(np.random.default_rng(seed), 20)
        assert {tuple(row) for row, ok in zip(rows.tolist(), inside, strict=True) if ok} <= set(expected)
        assert table.bucketed or inside.all()


@settings(max_examples=200)
@given(SLOTS.filter(bool), BYTES, st.integers(0, 99), st.data())
def test_the_range_of_other_costs_is_that_of_the_rows_inside(
    slots: list[list[int]], max_bytes: int, seed: int, data: st.DataObject
) -> None:
    totals = sorted(_total(slots, row) for row in itertools.product(*(range(len(slot)) for slot in slots)))
    low, high = sorted(data.draw(st.tuples(st.sampled_from(totals), st.sampled_from(totals))))
    rng = np.random.default_rng(seed)
    others = [rng.integers(-50, 50, len(slot)).tolist() for slot in slots]
    table = SumTable.of(_arrays(slots), low, high, max_bytes=max_bytes)
    found = [_total(others, row) for row in _rows(slots, low, high)]
    reach = table.range_of(_arrays(others))
    assert reach is not None
    assert reach[0] <= min(found) <= max(found) <= reach[1]
    assert table.bucketed or reach == (min(found), max(found))
    assert SumTable.of(_arrays(slots), totals[-1] + 1, np.inf, max_bytes=max_bytes).range_of(_arrays(others)) is None


@pytest.mark.parametrize("max_bytes", [1 << 20, 600])
def test_draws_are_uniform_over_the_rows_inside(max_bytes: int) -> None:
    slots = [[0, 7, 7, 30], [1, 2, 50], [0, 11, 22, 33, 44]]
    expected = _rows(slots, 30, 60)
    table = SumTable.of(_arrays(slots), 30, 60, max_bytes=max_bytes)
    assert table.bucketed == (max_bytes == 600)
    rows, inside = table.draw(np.random.default_rng(0), 300 * len(expected))
    counts = Counter(tuple(row) for row in rows[inside].tolist())
    assert set(counts) == set(expected)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@settings(max_examples=200)
@given(SLOTS.filter(bool), st.integers(1, 3), st.integers(0, 99), st.data())
def test_windows_of_several_costs_hold_the_rows_that_are_inside_all(
    slots: list[list[int]], kinds: int, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    costs = [slots, *([rng.integers(-9, 9, len(slot)).tolist() for slot in slots] for _ in range(kinds - 1))]
    rows = list(itertools.product(*(range(len(slot)) for slot in slots)))
    windows = []
    for of_kind in costs:
        totals = st.sampled_from(sorted(_total(of_kind, row) for row in rows))
        bounds = sorted(data.draw(st.tuples(totals, totals)))
        windows.append((data.draw(st.sampled_from([bounds[0], -np.inf])), bounds[1]))
    expected = [
        row
        for row in rows
        if all(low <= _total(of_kind, row) <= high for of_kind, (low, high) in zip(costs, windows, strict=True))
    ]
    table = SumTable.joint([_arrays(of_kind) for of_kind in costs], windows, max_sums=10_000)
    assert table is not None
    assert not table.bucketed
    assert table.empty == (not expected)
    assert table.count_bounds() == (len(expected), len(expected))
    assert [tuple(row) for row in map(list, table.enumerate())] == expected
    if expected:
        drawn, inside = table.draw(rng, 20)
        assert inside.all()
        assert {tuple(row) for row in drawn.tolist()} <= set(expected)
        found = [_total(costs[-1], row) for row in expected]
        assert table.range_of(_arrays(costs[-1])) == (min(found), max(found))


def test_too_many_combinations_of_sums_are_not_listed() -> None:
    rng = np.random.default_rng(0)
    costs = [[rng.integers(0, 10**6, 50) for _ in range(8)] for _ in range(2)]
    whole = (-np.inf, np.inf)
    assert SumTable.joint(costs, [whole, whole], max_sums=10_000) is None
    huge = [[np.array([0, 2**40]), np.array([0, 1])] for _ in range(2)]
    assert SumTable.joint(huge, [whole, whole], max_sums=10_000) is None
