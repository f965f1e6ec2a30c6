"""The search for a trade-off: sorting, crowding and hypervolume as pymoo has them, and what the search keeps to."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pymoo.indicators.hv import HV
from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.cost import Cost
from nasx.search import ParetoSearch, RandomSearch, Searcher
from nasx.search.pareto import crowding_distances, hypervolume, nondominated_ranks
from nasx.space import ArchSet
from tests.strategies import ToyCost, spaces

Floats = npt.NDArray[np.float64]

CONV = Space(k=one_of(3, 5, 7), expansion=one_of(1, 2, 4))
SPACE = Space(width=one_of(8, 16), block=repeat(Space(op=one_of({"none": None, "conv": CONV})), one_of(4, 6)))
BUDGET = Budget(ToyCost(1, 20), at_least=40, at_most=60)
COSTS = (ToyCost(1, 20), ToyCost(2, 30))
WIDE = Space(block=repeat(Space(w=one_of(*range(100))), 8))


def score(arch: Arch) -> float:
    """A toy score with many ties and some failures."""
    if SPACE.index(arch) % 7 == 0:
        return math.nan
    return float(sum(value for value in arch.values() if not isinstance(value, str)) // 8)


def run(searcher: Searcher) -> str:
    while not searcher.done:
        searcher.tell({arch: score(arch) for arch in searcher.ask()})
    return str(history(searcher))


def history(searcher: Searcher) -> list[tuple[str, float, int]]:
    return [(s.arch.to_json(), s.score, s.generation) for s in searcher.history]


def search(space: ArchSet = SPACE, seed: int = 0, costs: Sequence[Cost] = COSTS) -> ParetoSearch:
    return ParetoSearch(space, costs, population=20, generations=5, seed=seed)


# The parts, with pymoo as the oracle


@st.composite
def objectives(draw: st.DrawFn, least: int = 1, most: int = 4) -> Floats:
    """Points on a coarse grid (ties and duplicates everywhere) or with many digits."""
    shape = draw(st.tuples(st.integers(1, 14), st.integers(least, most)))
    values = draw(st.sampled_from([st.integers(0, 4).map(float), st.floats(-100, 100).map(lambda x: round(x, 6))]))
    return draw(arrays(np.float64, shape, elements=values))


@settings(max_examples=200)
@given(objectives())
def test_ranks_are_pymoos(points: Floats) -> None:
    _, ranks = NonDominatedSorting().do(points, return_rank=True)
    assert nondominated_ranks(points).tolist() == ranks.tolist()


@settings(max_examples=200)
@given(objectives())
def test_crowding_is_pymoos(points: Floats) -> None:
    """Duplicates, ends and constant objectives are pymoo's, which divides the sum of the paper by the objectives."""
    mean = get_crowding_function("cd").do(points)
    np.testing.assert_allclose(crowding_distances(points), mean * points.shape[1], rtol=1e-9, atol=1e-12)


@settings(max_examples=200)
@given(objectives(least=2), st.data())
def test_hypervolume_is_pymoos(points: Floats, data: st.DataObject) -> None:
    """The reference lies anywhere among the points, so that some or all of them are outside or on its edge."""
    reference = data.draw(arrays(np.float64, points.shape[1], elements=st.integers(-2, 6).map(float)))
    expected = float(HV(ref_point=reference)(points))
    assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=60)
@given(arrays(np.int64, st.tuples(st.integers(0, 6), st.integers(1, 4)), elements=st.integers(0, 5)))
def test_hypervolume_counts_the_unit_cells_that_points_dominate(points: npt.NDArray[np.int64]) -> None:
    m = points.shape[1]
    cells = sum(any((p <= cell).all() for p in points) for cell in itertools.product(range(4), repeat=m))
    assert hypervolume(points, [4] * m) == cells


def test_crowding_of_a_front_worked_by_hand() -> None:
    points = [[0, 10], [1, 6], [4, 5], [10, 0], [4, 5]]
    # [1, 6]: (4 - 0) / 10 + (10 - 5) / 10; the first [4, 5] has a duplicate above in one objective, below in the other
    assert crowding_distances(points).tolist() == pytest.approx([math.inf, 0.9, 0.8, math.inf, 0.7])
    assert crowding_distances([[1, 2], [1, 2]]).tolist() == [math.inf, math.inf]
    assert crowding_distances([[1, 2]] * 3).tolist() == [0, 0, 0]


def test_what_is_no_table_of_points_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(points, objectives\), but got \(3,\)"):
        nondominated_ranks([1, 2, 3])
    with pytest.raises(ValueError, match="must be finite"):
        crowding_distances([[1, math.nan]])
    with pytest.raises(ValueError, match="must have 2 numbers"):
        hypervolume([[1, 2]], [3, 3, 3])


def test_no_points_are_fine() -> None:
    empty = np.empty((0, 2))
    assert nondominated_ranks(empty).tolist() == crowding_distances(empty).tolist() == []
    assert hypervolume(empty, [1, 1]) == 0


# What is asked


@pytest.mark.parametrize("inside", [False, True])
def test_no_candidate_twice_all_inside_as_many_as_asked(inside: bool) -> None:
    space = SPACE.within(BUDGET) if inside else SPACE
    searcher = search(space)
    run(searcher)
    archs = [scored.arch for scored in searcher.history]
    assert len(archs) == len(set(archs)) == 100
    assert all(arch in space for arch in archs)
    assert searcher.ask() == []


@settings(max_examples=30)
@given(spaces(max_size=40), st.integers(0, 99))
def test_any_small_space_is_searched_to_its_end_and_its_front_found(space: Space, seed: int) -> None:
    cost, worth = ToyCost(3, 8), ToyCost(4, 8)
    searcher = ParetoSearch(space, [cost], population=8, generations=6, seed=seed)
    while not searcher.done:
        searcher.tell({arch: worth(arch) for arch in searcher.ask()})
    assert {scored.arch for scored in searcher.history} == set(space)

    def dominated(arch: Arch) -> bool:
        return any(
            cost(o) <= cost(arch) and worth(o) >= worth(arch) and (cost(o), worth(o)) != (cost(arch), worth(arch))
            for o in space
        )

    front = searcher.front()
    assert {scored.arch for scored in front} == {arch for arch in space if not dominated(arch)}
    assert [cost(scored.arch) for scored in front] == sorted(cost(scored.arch) for scored in front)


def test_an_equal_architecture_of_other_types_has_the_costs_of_the_one_that_the_space_writes() -> None:
    searcher = ParetoSearch(
        Space(w=one_of(4, 16)), [lambda arch: len(str(arch["w"]))], population=2, generations=1, mutation_probability=1
    )
    assert [searcher.costs_of(Arch({"w": w})) for w in (16.0, 16, 4)] == [(2,), (2,), (1,)]


def test_failed_candidates_are_no_parents_and_not_on_the_front() -> None:
    """All but one of the first generation fail: every later child is a gene away from that one."""
    searcher = ParetoSearch(WIDE, [ToyCost()], population=20, generations=2, mutation_probability=1e-9)
    first = searcher.ask()
    searcher.tell(dict.fromkeys(first[1:], math.nan) | {first[0]: -1e9})
    assert all(_distance(child, first[0]) == 1 for child in searcher.ask())
    assert [scored.arch for scored in searcher.front()] == first[:1]


def test_a_generation_that_failed_altogether_is_followed_by_uniform_draws() -> None:
    searcher = search()
    searcher.tell(dict.fromkeys(searcher.ask(), math.nan))
    assert searcher.front() == []
    assert searcher.hypervolumes() == [0.0]
    assert len(searcher.ask()) == 20


def test_crosses_have_each_gene_from_either_of_two_parents() -> None:
    searcher = ParetoSearch(
        WIDE, [ToyCost()], population=20, generations=2, mutation_probability=1e-9, crossover_probability=1.0
    )
    one, other, *failed = searcher.ask()
    searcher.tell({one: 1.0, other: 2.0} | dict.fromkeys(failed, math.nan))
    mutants = crosses = 0
    for child in searcher.ask():
        mutants += min(_distance(child, one), _distance(child, other)) == 1
        crosses += all(child[name] in (one[name], other[name]) for name in child)
    assert mutants + crosses >= 20
    assert crosses >= 3  # where one parent wins both tournaments, it mutates instead


def _mutants(costs: dict[Arch, int]) -> ParetoSearch:
    return ParetoSearch(
        WIDE,
        [lambda arch: costs.get(arch, 0)],
        population=20,
        generations=3,
        mutation_probability=1e-9,
        crossover_probability=0.0,
    )


def test_the_dominated_do_not_survive_whichever_generation_they_came_in() -> None:
    costs: dict[Arch, int] = {}
    searcher = _mutants(costs)
    first = searcher.ask()
    costs |= dict.fromkeys(first, 1)
    searcher.tell({arch: float(i) for i, arch in enumerate(first)})
    second = searcher.ask()
    costs |= dict.fromkeys(second, 1)
    searcher.tell(dict.fromkeys(second, 9.5))  # the upper ten of the first generation and ten of the second survive
    parents = [min([*first, *second], key=lambda arch: _distance(arch, child)) for child in searcher.ask()]
    assert not set(parents) & set(first[:10])


def test_better_survivors_win_more_tournaments() -> None:
    costs: dict[Arch, int] = {}
    searcher = _mutants(costs)
    first = searcher.ask()
    searcher.tell({arch: float(i) for i, arch in enumerate(first)})
    upper = sum(min(_distance(child, arch) for arch in first[10:]) == 1 for child in searcher.ask())
    assert upper > 12  # three in four are expected, one in two without tournaments


def test_a_crowd_does_not_displace_a_spread_front() -> None:
    """Twenty equals in the middle of a front of twenty: all are non-dominated, and the spread ones stay."""
    costs: dict[Arch, int] = {}
    searcher = _mutants(costs)
    spread = searcher.ask()
    costs |= {arch: 100 * i for i, arch in enumerate(spread)}
    searcher.tell({arch: 100.0 * i for i, arch in enumerate(spread)})
    crowd = searcher.ask()
    costs |= dict.fromkeys(crowd, 950)
    searcher.tell(dict.fromkeys(crowd, 950.0))
    assert len(searcher.front()) == 40
    assert all(min(_distance(child, arch) for arch in spread) == 1 for child in searcher.ask())


@pytest.mark.parametrize("amount", [math.nan, math.inf, None, "3", 1j], ids=repr)
def test_a_cost_that_is_no_finite_number_is_refused_with_its_architecture(amount: Any) -> None:
    costs: dict[Arch, Any] = {}
    searcher = _mutants(costs)
    first, second, *others = searcher.ask()
    costs[second] = amount
    found = re.escape(f"gave {amount!r}, a {type(amount).__name__}, for {dict(second)}")
    with pytest.raises(ValueError, match=f"a cost must be a finite number, but .*_mutants.* {found}"):
        searcher.tell({first: 0.5, second: 0.5})
    assert not searcher.history
    searcher.tell({first: 0.5, second: math.nan, **dict.fromkeys(others, 0.5)})  # who failed has no cost
    assert second not in searcher.ask()


def _distance(one: Arch, two: Arch) -> int:
    return sum(one[name] != two[name] for name in one)


# What is found


def test_the_true_front_is_covered_better_than_by_random_search() -> None:
    space = Space(block=repeat(Space(w=one_of(*range(6))), 10))
    cost, worth = ToyCost(5, 50), ToyCost(6, 50)  # independent, part by part
    front = {(0, 0)}
    fixed = (cost.fixed({}), worth.fixed({}))
    for i in range(10):  # the front of a sum is the front of the sums of fronts
        options = [(cost.part("block", i, {}, {"w": w}), worth.part("block", i, {}, {"w": w})) for w in range(6)]
        sums = sorted({(c + dc, s + ds) for c, s in front for dc, ds in options})
        ranks = nondominated_ranks([(c, -s) for c, s in sums])
        front = {point for point, rank in zip(sums, ranks, strict=True) if rank == 0}
    greatest = sum(max(cost.part("block", i, {}, {"w": w}) for w in range(6)) for i in range(10)) + fixed[0]
    true = hypervolume([(-s - fixed[1], c + fixed[0]) for c, s in front], (0, greatest))

    for seed in range(2):
        pareto = ParetoSearch(space, [cost], population=40, generations=15, seed=seed)
        rival = RandomSearch(space, evaluations=600, seed=seed)
        for searcher in (pareto, rival):
            while not searcher.done:
                searcher.tell({arch: worth(arch) for arch in searcher.ask()})
            assert len(searcher.history) == 600
        drawn = hypervolume([(-s.score, cost(s.arch)) for s in rival.history], (0, greatest))
        found = pareto.hypervolumes()
        assert len(found) == 15
        assert found == sorted(found)
        assert found[-1] <= true
        assert true - found[-1] < 0.25 * (true - drawn)


def test_the_reference_may_be_given_and_must_be_where_a_cost_has_no_known_range() -> None:
    searcher = ParetoSearch(SPACE, [lambda arch: 3], population=1, generations=2)
    searcher.tell(dict.fromkeys(searcher.ask(), 5.0))
    assert searcher.hypervolumes([10]) == searcher.hypervolumes(10) == [5 * 7]
    assert searcher.hypervolumes([10], reference_score=4.0) == [1 * 7]
    assert searcher.hypervolumes([3]) == [0.0]
    with pytest.raises(ValueError, match="pass `reference_costs`"):
        searcher.hypervolumes()


def test_the_reference_is_the_greatest_cost_of_the_whole_space() -> None:
    space = Space(block=repeat(Space(w=one_of(0, 1, 2, 3)), 4))
    greatest = [max(cost(arch) for arch in space) for cost in COSTS]
    searcher = search(space.within(Budget(COSTS[0], at_most=greatest[0] - 10)))
    while not searcher.done:
        searcher.tell({arch: float(arch["block.0.w"]) for arch in searcher.ask()})
    assert searcher.hypervolumes() == searcher.hypervolumes(greatest)
    assert searcher.hypervolumes()[-1] > 0


# Continuation, and the process


@settings(max_examples=8)
@given(st.integers(0, 100), st.booleans())
def test_a_restored_search_goes_on_as_if_never_stopped(stop: int, inside: bool) -> None:
    space = SPACE.within(BUDGET) if inside else SPACE
    uninterrupted = search(space, 5)
    expected = run(uninterrupted)
    searcher, scored = search(space, 5), 0
    while not searcher.done and scored < stop:
        for arch in searcher.ask()[::-1][: stop - scored]:
            searcher.tell({arch: score(arch)})
            scored += 1
    again = search(space, 5)
    again.restore(json.loads(json.dumps(searcher.state(), allow_nan=False)))
    assert again.ask() == searcher.ask()
    assert run(again) == expected
    assert again.front() == uninterrupted.front()


def test_the_seed_decides() -> None:
    assert run(search(seed=3)) == run(search(seed=3))
    assert run(search(seed=3)) != run(search(seed=4))


def test_nothing_depends_on_the_hash_seed() -> None:
    script = """
from tests.search.test_pareto import BUDGET, SPACE, run, search
print(run(search()), run(search(SPACE.within(BUDGET))))
"""
    first, second = (_printed(script, seed) for seed in ("1", "2"))
    assert first == second
    assert len(first) > 1000


def _printed(script: str, hash_seed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command, root = [sys.executable, "-c", script], Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=True).stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"costs": []}, "at least one cost"),
        ({"population": 0}, "at least one candidate, but got 0"),
        ({"generations": 0}, "at least one evaluation, but got 0"),
        ({"mutation_probability": 0.0}, "mutation_probability <= 1` must hold, but got 0.0"),
        ({"crossover_probability": 1.5}, "crossover_probability <= 1` must hold, but got 1.5"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParetoSearch(SPACE, **{"costs": COSTS, **settings})


@pytest.mark.parametrize("kind", [lambda x: torch.tensor([x]), torch.tensor, lambda x: np.array([[x]]), Fraction])
def test_costs_are_numbers_of_any_library(kind: Any) -> None:
    searcher = search(costs=[lambda arch: kind(float(len(arch)))])
    run(searcher)
    plain = search(costs=[lambda arch: float(len(arch))])
    run(plain)
    assert [s.arch for s in searcher.front()] == [s.arch for s in plain.front()]
    assert searcher.hypervolumes(30) == plain.hypervolumes(30)


def test_one_cost_needs_no_list() -> None:
    assert ParetoSearch(SPACE, COSTS[0]).costs == ParetoSearch(SPACE, [COSTS[0]]).costs
