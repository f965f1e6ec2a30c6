"""Costs split an architecture into shared choices and parts; budgets are inclusive bounds on integers."""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasx import Arch, Budget, Space, one_of
from nasx.arch import Value, split
from nasx.cost import AdditiveCost, PercentOfLargest, parse_amount
from tests.strategies import ToyCost, archs, spaces


class Latencies(ToyCost):
    """Costs time."""

    unit = "µs"


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


@settings(max_examples=60)
@given(spaces(), st.integers(0, 10**6))
def test_a_cost_is_the_fixed_share_and_those_of_the_parts(space: Space, seed: int) -> None:
    arch, cost = space.sample(seed), ToyCost(seed)
    shared, parts = split(arch)
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
        lambda cost: Budget(cost, at_most=10**400),
        lambda cost: Budget(cost, at_most="1e400"),
    ],
)
def test_bounds_that_cannot_be_meant_are_refused(build: Callable[[AdditiveCost], Budget]) -> None:
    with pytest.raises(ValueError, match=r"at_most|at_least"):
        build(ToyCost())


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1.4G", 1_400_000_000),
        ("5.7M", 5_700_000),
        ("600k", 600_000),
        ("600 K", 600_000),
        ("2T", 2 * 10**12),
        ("1.1G", 1_100_000_000),  # 1.1 * 1e9 is a little more
        ("1.4e9", 1_400_000_000),
        (".5", 0.5),
        ("1_000", 1000),
        ("60%", PercentOfLargest(60)),
        ("12.5 %", PercentOfLargest(12.5)),
    ],
)
def test_amounts_are_read_as_people_write_them(text: str, amount: object) -> None:
    assert parse_amount(text) == amount
    assert type(parse_amount(text)) is type(amount)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "1.4g",
        "1,400,000",
        "-1",
        "1.4 GMACs",
        "nan",
        "inf",
        "1e",
        "0%",
        "120%",
        "1e400",
        "1e9_9",
        "1e99999999999999999999",
        "1e300T",
    ],
)
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 1\.4G or 60%|percentage"):
        parse_amount(text)
    with pytest.raises(ValueError, match=r"budget\.most: "):
        Budget(ToyCost(), at_most=text, names=("budget.least", "budget.most"))


def test_a_budget_takes_texts() -> None:
    assert Budget(ToyCost(), "1k", "1.4G") == Budget(ToyCost(), 1000, 1_400_000_000)
    budget = Budget(ToyCost(), at_most="60%")
    assert str(budget) == "at most 60 % of the largest network's toys"
    for asked in (lambda: budget.upper, lambda: Arch({}) in budget):
        with pytest.raises(ValueError, match=r"at most 60 % .* unknown without a space"):
            asked()


@settings(max_examples=40)
@given(spaces(max_size=60), st.integers(0, 99), st.integers(1, 100))
def test_percentages_are_of_the_costliest_architecture(space: Space, seed: int, percent: int) -> None:
    cost = ToyCost(seed)
    largest = max(map(cost, archs(space)))
    budget = Budget(cost, at_most=f"{percent}%").resolved(space)
    assert [arch in budget for arch in archs(space)] == [100 * cost(arch) <= percent * largest for arch in archs(space)]
    assert Budget(cost, at_least=f"{percent}%").resolved(space).lower == -(-percent * largest // 100)


def test_percentages_are_exact() -> None:
    """4.1 * 1e6 / 100 is a little less than 41,000 in floats."""
    for tenths in range(1, 1001):
        share = parse_amount(f"{tenths / 10}%")
        assert isinstance(share, PercentOfLargest)
        assert [share.of(largest) for largest in (1000, 1_000_000)] == [tenths, 1000 * tenths]
    assert PercentOfLargest(12.5).of(100) == 12.5


def test_the_largest_network_of_a_plain_function_is_not_known() -> None:
    with pytest.raises(ValueError, match="greatest cost is known of an AdditiveCost only"):
        Space(a=one_of(1, 2)).within(Budget(lambda arch: int(arch["a"]), at_most="60%"))


def test_fractional_costs_compare_as_they_are() -> None:
    def gigaflops(arch: Arch) -> float:
        return float(arch["a"]) * 1.5

    one = Arch({"a": 1})
    for low, high, inside in ((None, 1.6, True), (1.4, 2.2, True), (None, 2.0, True), (None, 1.4, False)):
        assert (one in Budget(gigaflops, at_least=low, at_most=high)) == inside
    space = Space(a=one_of(1, 2)).within(Budget(gigaflops, at_most=1.6))
    assert list(space) == [one] == [space.sample(0)]


@pytest.mark.parametrize("cost", [math.nan, math.inf, "4", None], ids=repr)
def test_a_cost_that_is_no_number_is_named(cost: object) -> None:
    def broken(arch: Arch) -> float:
        return cost  # type: ignore[return-value]

    with pytest.raises(ValueError, match=r"a cost must be a finite number, but <function .*broken"):
        _ = Arch({"a": 1}) in Budget(broken, at_most=5)


def test_crossing_bounds_name_what_they_are_called() -> None:
    names = ("budget.details_at_least", "budget.details_at_most")
    with pytest.raises(ValueError, match=r"`budget\.details_at_least <= budget\.details_at_most` must hold"):
        Budget(ToyCost(), 5, 4, names=names)
    with pytest.raises(ValueError, match=r"no whole number lies between budget\.details_at_least=4\.2 and "):
        Budget(ToyCost(), 4.2, 4.8, names=names)
    assert Arch({"a": 1}) in Budget(lambda arch: 4.5, 4.2, 4.8)
    with pytest.raises(ValueError, match="`at_least <= at_most` must hold"):
        Budget(ToyCost(), "60%", "50%")
    assert Budget(ToyCost(), 5, names=names) == Budget(ToyCost(), 5)  # names are for messages alone


def test_scalars_of_other_libraries_are_bounds_and_costs() -> None:
    arch = Arch({"a": 1})
    for kind in (torch.tensor, np.array, np.float32, lambda x: torch.tensor([x]), Fraction, Decimal):
        budget = Budget(lambda arch, kind=kind: kind(6.0), at_most=kind(30))  # type: ignore[arg-type]
        assert budget.at_most == 30
        assert arch in budget
        assert arch not in Budget(budget.cost, at_most=5)
        assert Space(a=one_of(1, 2)).within(budget).canonical(arch) == arch
    with pytest.raises(ValueError, match=r"a cost must be a finite number, .* gave tensor\(.*\), a Tensor"):
        _ = arch in Budget(lambda arch: torch.zeros(2), at_most=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at_most must be a finite number"):
        Budget(ToyCost(), at_most=torch.zeros(2))  # type: ignore[arg-type]


def test_a_budget_says_its_bounds_and_unit() -> None:
    assert str(Budget(ToyCost(), at_least=10, at_most=1.5e9)) == "at least 10 and at most 1.5G toys"
    assert str(Budget(ToyCost(), at_most=7)) == "at most 7 toys"
    assert str(Budget(ToyCost())) == "any number of toys"
    assert str(Budget(Latencies(), at_most=2188.8)) == "at most 2,188.8 µs"
    assert Budget(lambda arch: len(arch)).unit == ""
