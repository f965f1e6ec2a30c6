"""Costs that add up over the repeated parts of an architecture, and budgets on them."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

from nasx._numbers import finite_number
from nasx.arch import Arch, Value, split

if TYPE_CHECKING:
    from nasx.space import Space

_TIMES = ("µs",)  # units of bounds that are written without a letter
_MULTIPLES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Cost(Protocol):
    """Anything that gives an architecture a finite number as its cost.

    A cost that is no `AdditiveCost` can only filter draws; it need not be a whole number.
    """

    def __call__(self, arch: Arch) -> float:
        """Return the architecture's cost."""


class AdditiveCost(ABC):
    """A cost that is a fixed share plus one share per repeated part, in whole numbers.

    The two methods say all there is to know: neither may look at anything but its arguments. This structure is
    what makes it possible to count the architectures inside a budget and to draw from them uniformly.
    """

    unit: str = ""
    """What the integer counts, for messages: "MACs", "parameters", "µs"."""

    @abstractmethod
    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the cost outside the repeated parts, given every choice that is not in one (counts included)."""

    @abstractmethod
    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the cost of the part `name.index`, whose choices come with the prefix stripped."""

    def __call__(self, arch: Arch) -> int:
        """Return the architecture's cost: `fixed` plus the sum of its parts."""
        shared, parts = split(arch)
        return self.fixed(shared) + sum(self.part(name, i, shared, choices) for (name, i), choices in parts.items())


def amount_of(cost: Cost, arch: Arch) -> float:
    """Return an architecture's cost as Python's number; a ValueError says that it is no finite one."""
    given = cost(arch)
    amount: float | None = finite_number(given)
    if amount is None:
        raise ValueError(
            f"a cost must be a finite number, but {cost!r} gave {given!r}, a {type(given).__name__}, for {dict(arch)}"
        )
    return amount


@dataclass(frozen=True, slots=True)
class PercentOfLargest:
    """A bound in percent of what the costliest architecture of a space costs: 60.0 is 60 %."""

    percent: float

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise ValueError(f"a percentage of the largest network must lie in (0, 100], but got {self.percent:g}%")

    def of(self, largest: float) -> float:
        """Return the bound as a number, given the greatest cost: 4.1 % of 1,000,000 is 41,000 to the last digit."""
        exact = Fraction(str(self.percent)) * Fraction(largest) / 100
        return int(exact) if exact.denominator == 1 else float(exact)

    def __str__(self) -> str:
        return f"{self.percent:g} % of the largest network's"


Bound = float | str | PercentOfLargest
"""A bound as it may be given: a number, a text for `parse_amount`, or a share of the largest network."""


def parse_amount(text: str) -> float | PercentOfLargest:
    """Return the amount that a text such as "1.4G", "5.7M", "600k", "1.4e9" or "60%" stands for.

    k (or K), M, G and T multiply by powers of 1,000; whole amounts are ints. A percentage is of the costliest
    architecture of the space that the budget is for (`Budget.resolved`). Anything else is a ValueError.
    """
    match = re.fullmatch(r"\s*([\d_]*\.?\d+(?:[eE][+-]?\d+)?|\d+\.)\s*([A-Za-z%]?)\s*", text)
    if match is None or match[2] not in (*_MULTIPLES, "%"):
        raise ValueError(
            f"an amount is a number, alone or followed by k, M, G, T or %, but got {text!r}; write 1.4G or 60%"
        )
    try:
        amount = Decimal(match[1]) * _MULTIPLES.get(match[2], 1)  # so that 1.1G is 1,100,000,000 to the last digit
    except ArithmeticError:
        amount = Decimal("inf")
    if finite_number(amount) is None:
        raise ValueError(f"an amount must fit a float, but got {text!r}; write 1.4G or 60%")
    if match[2] == "%":
        return PercentOfLargest(float(amount))
    return int(amount) if amount == amount.to_integral_value() else float(amount)


@dataclass(frozen=True, init=False)
class Budget:
    """The bounds `at_least` and `at_most` on a cost, both inclusive; None leaves a side open. `arch in budget` asks it.

    Bounds are numbers or texts such as "1.4G", "5.7M" and "60%" (`parse_amount`). A percentage becomes a number when a
    space is given to it: by `space.within(budget)`, or by `resolved`. `names` is what messages call the two bounds,
    for those who read them from settings of their own.
    """

    cost: Cost
    at_least: float | PercentOfLargest | None
    at_most: float | PercentOfLargest | None
    names: tuple[str, str] = field(compare=False, repr=False)

    def __init__(
        self,
        cost: Cost,
        at_least: Bound | None = None,
        at_most: Bound | None = None,
        *,
        names: tuple[str, str] = ("at_least", "at_most"),
    ) -> None:
        if not callable(cost):
            raise TypeError(f"a budget's cost is called with an architecture, but got {cost!r}")
        for name, value in {
            "cost": cost,
            "at_least": _checked(at_least, names[0]),
            "at_most": _checked(at_most, names[1]),
            "names": names,
        }.items():
            object.__setattr__(self, name, value)
        self._refuse_crossing()

    @property
    def is_resolved(self) -> bool:
        """Whether both bounds are numbers or open, so that no space is needed to tell what is inside."""
        return not any(isinstance(bound, PercentOfLargest) for bound in (self.at_least, self.at_most))

    def resolved(self, space: "Space") -> "Budget":
        """Return the budget with percentages as numbers: shares of the greatest cost in a space.

        Raises ValueError for a percentage of a cost that is no `AdditiveCost`, whose greatest value is not known.
        """
        if self.is_resolved:
            return self
        from nasx.feasible import attainable  # the arrow points from feasible to cost

        if not isinstance(self.cost, AdditiveCost):
            raise ValueError(
                f"{self} is unknown: the greatest cost is known of an AdditiveCost only; "
                f"give {' and '.join(self.names)} as numbers"
            )
        largest = attainable(space, self.cost).high
        at_least, at_most = (
            bound.of(largest) if isinstance(bound, PercentOfLargest) else bound
            for bound in (self.at_least, self.at_most)
        )
        return Budget(self.cost, at_least, at_most, names=self.names)

    def and_also(self, other: "Budget") -> "Budget":
        """Return the budget inside both, whose bounds keep their names; both are resolved, and of one cost."""
        (low, high), (other_low, other_high) = self._numbers(), other._numbers()
        names = list(self.names)
        if low is None or (other_low is not None and other_low > low):
            low, names[0] = other_low, other.names[0]
        if high is None or (other_high is not None and other_high < high):
            high, names[1] = other_high, other.names[1]
        return Budget(self.cost, low, high, names=(names[0], names[1]))

    @property
    def lower(self) -> float:
        """The smallest integer inside, or minus infinity."""
        at_least, _ = self._numbers()
        return -math.inf if at_least is None else math.ceil(at_least)

    @property
    def upper(self) -> float:
        """The largest integer inside, or infinity."""
        _, at_most = self._numbers()
        return math.inf if at_most is None else math.floor(at_most)

    @property
    def unit(self) -> str:
        """What the cost counts."""
        return str(getattr(self.cost, "unit", ""))

    def amount(self, arch: Arch) -> float:
        """Return an architecture's cost; a ValueError says that it is no finite number."""
        return amount_of(self.cost, arch)

    def holds(self, amount: float) -> bool:
        """Whether an amount of the cost lies inside the bounds; a ValueError says that it is no finite number."""
        if finite_number(amount) is None:
            raise ValueError(f"a cost must be a finite number, but {self.cost!r} gave {amount!r}")
        at_least, at_most = self._numbers()
        return (at_least is None or at_least <= amount) and (at_most is None or amount <= at_most)

    def __contains__(self, arch: Arch) -> bool:
        return self.holds(self.amount(arch))

    def __str__(self) -> str:
        bounds = " and ".join(
            f"{word} {_written(bound, letters=self.unit not in _TIMES)}"
            for word, bound in (("at least", self.at_least), ("at most", self.at_most))
            if bound is not None
        )
        return f"{bounds or 'any number of'} {self.unit}".rstrip()

    def _refuse_crossing(self) -> None:
        low, high = self.at_least, self.at_most
        if low is None or high is None or isinstance(low, PercentOfLargest) != isinstance(high, PercentOfLargest):
            return  # one side is open, or they compare only once a space is known
        first, last = (bound.percent if isinstance(bound, PercentOfLargest) else bound for bound in (low, high))
        met = f"{self.names[0]}={_written(low)} and {self.names[1]}={_written(high)}"
        if first > last:
            raise ValueError(f"`{self.names[0]} <= {self.names[1]}` must hold, but got {met}; change one of them")
        if self.is_resolved and isinstance(self.cost, AdditiveCost) and self.lower > self.upper:
            raise ValueError(f"no whole number lies between {met}; change one of them")

    def _numbers(self) -> tuple[float | None, float | None]:
        at_least, at_most = self.at_least, self.at_most
        if isinstance(at_least, PercentOfLargest) or isinstance(at_most, PercentOfLargest):
            raise ValueError(f"{self} is unknown without a space; use space.within(budget) or budget.resolved(space)")
        return at_least, at_most


def _checked(bound: Bound | None, name: str) -> float | PercentOfLargest | None:
    if bound is None or isinstance(bound, PercentOfLargest):
        return bound
    if isinstance(bound, str):
        try:
            return parse_amount(bound)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    number: float | None = finite_number(bound)
    if number is None or number < 0:
        raise ValueError(
            f"{name} must be a finite number of 0 or more, or a text such as 1.4G or 60%, but got {bound!r}"
        )
    return number


def _written(bound: float | PercentOfLargest, *, letters: bool = True) -> str:
    if isinstance(bound, PercentOfLargest):
        return str(bound)
    if not letters:
        return f"{bound:,.6g}"
    letter = next((letter for letter in "TGMk" if _MULTIPLES[letter] <= abs(bound) < math.inf), "")
    return f"{bound / _MULTIPLES[letter]:.6g}{letter}"
