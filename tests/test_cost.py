"""Costs split an architecture into shared choices and parts; budgets are inclusive bounds on integers."""

import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasx import Arch, Budget, Space
from nasx.arch import Value
from nasx.cost import AdditiveCost, split
from tests.strategies import ToyCost, spaces


class Trace(AdditiveCost):
    """Costs nothing and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def fixed(self, shared: Mapping[str, Value]) -> int:
        self.asked.append(("fixed", dict(shared)))
        return 100

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        self.asked.append((name, index, dict(shared), dict(choices)))
        return 10


def test_a_part_is_asked_with_the_shared_choices_and_its_own() -> None:
    cost = Trace()
    arch = Arch({"width": 8, "net.stage.count": 2, "net.stage.0.k": 3, "net.stage.1.k": 5, "net.stage.1.x.0.k": 7})
    assert cost(arch) == 120
    shared = {"width": 8, "net.stage.count": 2}
    assert cost.asked == [
        ("fixed", shared),
        ("net.stage", 0, shared, {"k": 3}),
        ("net.stage", 1, shared, {"k": 5, "x.0.k": 7}),
    ]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(spaces(), st.integers(0, 10**6))
def test_splitting_loses_nothing(space: Space, seed: int) -> None:
    arch = space.sample(seed)
    shared, parts = split(arch)
    joined = dict(shared) | {f"{name}.{i}.{n}": v for (name, i), part in parts.items() for n, v in part.items()}
    assert Arch(joined) == arch
    assert not any(segment.isdigit() for name in shared for segment in name.split("."))
    cost = ToyCost(seed)
    assert cost(arch) == cost.fixed(shared) + sum(cost.part(*key, shared, part) for key, part in parts.items())


@pytest.mark.parametrize(
    ("at_least", "at_most", "inside"),
    [
        (None, None, range(10)),
        (3, None, range(3, 10)),
        (None, 3, range(4)),
        (3, 5, range(3, 6)),
        (4, 4, range(4, 5)),
        (2.5, 5.5, range(3, 6)),
        (0, 0, range(1)),
    ],
)
def test_bounds_are_inclusive(at_least: float | None, at_most: float | None, inside: range) -> None:
    budget = Budget(lambda arch: int(arch["a"]), at_least=at_least, at_most=at_most)
    assert [cost for cost in range(10) if Arch({"a": cost}) in budget] == list(inside)


@pytest.mark.parametrize(
    "build",
    [
        lambda cost: Budget(cost, at_least=5, at_most=4),
        lambda cost: Budget(cost, at_most=-1),
        lambda cost: Budget(cost, at_least=math.nan),
        lambda cost: Budget(cost, at_most=math.inf),
    ],
)
def test_bounds_that_cannot_be_meant_are_refused(build: Callable[[AdditiveCost], Budget]) -> None:
    with pytest.raises(ValueError, match=r"at_most|at_least"):
        build(ToyCost())


def test_a_budget_says_its_bounds_and_unit() -> None:
    assert str(Budget(ToyCost(), at_least=10, at_most=1.5e9)) == "at least 10 and at most 1.5e+09 toys"
    assert str(Budget(ToyCost(), at_most=7)) == "at most 7 toys"
    assert str(Budget(ToyCost())) == "any number of toys"
    assert Budget(lambda arch: len(arch)).unit == ""
