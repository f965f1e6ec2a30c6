"""The tables of a space inside additive budgets, and the range of a cost."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nasx._arguments import check_space
from nasx._cases import Case, cases_of, costs_of
from nasx._filters import Limit
from nasx.arch import Arch
from nasx.cost import AdditiveCost, Budget, Cost
from nasx.space import Space
from nasx.sums import Ints, SumTable

MAX_SUMS = 500_000
"""Combinations of sums that several budgets may have together: seconds."""

Costs = list[tuple[int, list[Ints]]]
"""Of each case, the fixed cost and the costs of each slot's options."""


@dataclass(frozen=True)
class Attainable:
    """The least and the greatest cost in a space, with architectures that have them."""

    low: int
    high: int
    low_arch: Arch
    high_arch: Arch


def attainable(space: Space, cost: AdditiveCost) -> Attainable:
    """Return the least and the greatest cost of a space's architectures, with architectures that have them.

    A TypeError refuses a part of a space, and a cost that is no `AdditiveCost`, whose range is not known.
    """
    check_space(space, "attainable(space, cost)")
    if not isinstance(cost, AdditiveCost):
        raise TypeError(
            f"the range of a cost is known of an AdditiveCost only, but got {cost!r}; count it with "
            "nasx.measure.counted(kind, make, space, example), or write a subclass with `fixed` and `part`"
        )
    cases = list(cases_of(space))
    return extremes(cases, _costs(cases, cost))


def extremes(cases: Sequence[Case], costs: Costs) -> Attainable:
    found = []
    for pick, best in ((np.argmin, min), (np.argmax, max)):
        options = [[int(pick(slot)) for slot in slots] for _, slots in costs]
        totals = [
            fixed + sum(int(slot[option]) for slot, option in zip(slots, row, strict=True))
            for (fixed, slots), row in zip(costs, options, strict=True)
        ]
        at = best(range(len(cases)), key=totals.__getitem__)
        found.append((totals[at], cases[at].decode(options[at])))
    (low, low_arch), (high, high_arch) = found
    return Attainable(low, high, low_arch, high_arch)


class Tables:
    """A space inside additive budgets, case by case: tables hold the budgets in `exact`, `passes` asks those in `left`.

    The budgets that are left add up too and are quick to ask, so no answer is remembered.
    """

    def __init__(
        self,
        additive: Sequence[Budget],
        cases: Sequence[Case],
        costs: Costs,
        tables: Sequence[SumTable],
        *,
        exact: int,
        max_bytes: int,
    ) -> None:
        self.additive, self._max_bytes = tuple(additive), max_bytes
        self.exact, self.left = self.additive[:exact], tuple(map(Limit, self.additive[exact:]))
        self.cases, self.tables, self._first_costs = cases, tables, costs
        log_ways = np.array([table.log_ways for table in tables])
        self.empty = bool(np.all(np.isneginf(log_ways)))
        if not self.empty:
            weights = np.exp(log_ways - log_ways.max())
            self.weights: npt.NDArray[np.float64] = weights / weights.sum()

    @classmethod
    def of(cls, space: Space, additive: Sequence[Budget], max_bytes: int, max_sums: int) -> "Tables":
        cases = list(cases_of(space))
        costs = [_costs(cases, budget.cost) for budget in additive]
        if len(additive) > 1 and (joint := _joint_tables(additive, costs, max_sums // len(cases))) is not None:
            return cls(additive, cases, costs[0], joint, exact=len(additive), max_bytes=max_bytes)
        first, each = additive[0], max_bytes // len(cases)
        tables = [
            SumTable.of(slots, first.lower - fixed, first.upper - fixed, max_bytes=each) for fixed, slots in costs[0]
        ]
        return cls(additive, cases, costs[0], tables, exact=1, max_bytes=max_bytes)

    def holds(self, arch: Arch) -> bool:
        """Whether an architecture of the space is inside all budgets."""
        return all(arch in budget for budget in self.exact) and self.passes(arch)

    def passes(self, arch: Arch) -> bool:
        """Whether an architecture that is inside the exact budgets is inside those that are left."""
        return all(limit.holds(arch) for limit in self.left)

    def narrowed(self, children: Space, max_sums: int) -> "Tables":
        """Return the tables of some children inside the same budgets."""
        return Tables.of(children, self.additive, self._max_bytes, max_sums)

    @property
    def bucketed(self) -> bool:
        """Whether an architecture that is drawn can be outside of an exact budget."""
        return any(table.bucketed for table in self.tables)

    def costs_of(self, cost: Cost) -> Costs:
        return _costs(self.cases, cost)

    def attainable(self) -> Attainable:
        """Return the range of the first budget's cost, whatever its bounds."""
        return extremes(self.cases, self._first_costs)

    def nearest(self, budget: Budget) -> tuple[int, int] | None:
        """Return the costs next below and above the first budget, where both exist and no cost is rounded."""
        found: list[int] = []
        for low, high, pick in ((-math.inf, budget.lower - 1, max), (budget.upper + 1, math.inf, min)):
            tables = [
                SumTable.of(slots, low - fixed, high - fixed, max_bytes=self._max_bytes // len(self.cases))
                for fixed, slots in self._first_costs
            ]
            ranges = [
                (fixed + inside[0], fixed + inside[1])
                for table, (fixed, slots) in zip(tables, self._first_costs, strict=True)
                if not table.bucketed and (inside := table.range_of(slots)) is not None
            ]
            if not ranges or any(table.bucketed for table in tables):
                return None
            found.append(pick(cost for pair in ranges for cost in pair))
        return found[0], found[1]

    def count_bounds(self) -> tuple[int, int]:
        """Return the least and the greatest possible number of architectures inside."""
        counts = [table.count_bounds() for table in self.tables]
        low, high = (sum(bounds) for bounds in zip(*counts, strict=True))
        return (0 if self.left else low), high

    def range_of(self, costs: Costs) -> tuple[int, int]:
        """Return the range of another cost inside, or a little more where costs were bucketed."""
        found = [
            (fixed + inside[0], fixed + inside[1])
            for table, (fixed, slots) in zip(self.tables, costs, strict=True)
            if (inside := table.range_of(slots)) is not None
        ]
        return min(low for low, _ in found), max(high for _, high in found)

    def enumerate(self) -> Iterator[Arch]:
        for case, table in zip(self.cases, self.tables, strict=True):
            yield from filter(self.passes, map(case.decode, table.enumerate()))


def _costs(cases: Sequence[Case], cost: Cost) -> Costs:
    assert isinstance(cost, AdditiveCost)
    return [costs_of(case, cost) for case in cases]


def _joint_tables(additive: Sequence[Budget], costs: Sequence[Costs], max_sums: int) -> list[SumTable] | None:
    tables = []
    for of_case in zip(*costs, strict=True):
        windows = [
            (budget.lower - fixed, budget.upper - fixed) for budget, (fixed, _) in zip(additive, of_case, strict=True)
        ]
        table = SumTable.joint([slots for _, slots in of_case], windows, max_sums=max_sums)
        if table is None:
            return None
        tables.append(table)
    return tables
