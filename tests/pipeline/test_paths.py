"""The settings choose the paths of supernets."""

from itertools import pairwise

import pytest

from nasx import Budget, Space, one_of, repeat
from nasx.feasible import attainable
from nasx.pipeline.paths import supernet_paths
from recipes.glit.config import DIGITS
from tests.pipeline.problems import glit


def test_a_configuration_chooses_the_paths_of_supernets() -> None:
    problem = glit()
    space, inside, cost = problem.space, problem.inside, problem.cost
    assert cost is not None
    costs: dict[str, list[int]] = {}
    for paths in ("uniform", "architectures", "budget", "stratified", "sandwich"):
        config = DIGITS.supernet.model_copy(update={"paths": paths, "strata": 3})
        drawn = supernet_paths(config, inside, cost, seed=0)
        costs[paths] = [cost(arch) for step in range(30) for arch in drawn(step)]
    low, high = DIGITS.budget.details_at_least, DIGITS.budget.details_at_most
    assert isinstance(low, float)
    assert isinstance(high, float)
    for paths in ("budget", "stratified"):
        assert all(low <= cost <= high for cost in costs[paths])
    for paths in ("uniform", "architectures"):
        assert not all(low <= cost <= high for cost in costs[paths])
    edges = [low + (high - low) * i / 3 for i in range(4)]
    assert [sum(left <= c < right for c in costs["stratified"]) for left, right in pairwise(edges)] == [10, 10, 10]
    assert len(costs["sandwich"]) == 4 * 30
    reach = attainable(space, cost)
    (teacher,) = set(costs["sandwich"][0::4])
    assert teacher < reach.high  # the costliest network has no attention to teach
    assert set(costs["sandwich"][1::4]) == {reach.low}


def test_fair_paths_need_a_space_that_has_them() -> None:
    fair = DIGITS.supernet.model_copy(update={"paths": "fair"})
    flat = Space(block=repeat(Space(kernel=one_of(3, 5, 7)), 4))
    problem = glit()
    drawn = supernet_paths(fair, flat.within(Budget(lambda arch: 0)), problem.cost, seed=0)
    assert sorted(arch["block.2.kernel"] for arch in drawn(5)) == [3, 5, 7]
    with pytest.raises(ValueError, match="open subspaces"):
        supernet_paths(fair, problem.inside, problem.cost, seed=0)


def test_paths_that_need_a_cost_say_so_where_there_is_none() -> None:
    space = Space(kernel=one_of(3, 5, 7))
    for paths in ("stratified", "sandwich"):
        config = DIGITS.supernet.model_copy(update={"paths": paths})
        with pytest.raises(
            ValueError, match=f"supernet.paths={paths} does not fit this space: they need a cost that adds up"
        ):
            supernet_paths(config, space, None, seed=0)
