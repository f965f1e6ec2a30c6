"""The architectures inside a budget: counted exactly and drawn uniformly, without rejection.

A cost that adds up over parts (`nasx.cost.AdditiveCost`) turns the question into one about sums of integers: for each
assignment of the shared choices (a "case") a table says how many ways lead from every partial sum into the budget
(`nasx.sums`). Several additive costs are met together where the combinations of sums that occur are few enough.
Budgets on other costs, and predicates, filter the draws. Where no cost adds up there is no table: the draws that are
filtered are the whole space's.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from nasx._arguments import check_space
from nasx._cases import Case, cases_of, costs_of
from nasx._numbers import checked_count
from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost, Budget, Cost
from nasx.space import Draws, EmptySet, Predicate, Probability, Rng, Space, as_generator, pick_genes
from nasx.sums import Ints, SumTable

ArchPredicate = Callable[[Arch], bool]
"""Whether an architecture may be drawn."""

MAX_BYTES = 512 << 20
"""Memory of all tables of a set, about."""

MAX_TRIES = 1_000
"""Draws for one architecture before the filters are said to meet none."""

_MAX_SUMS = 500_000  # combinations of sums that several budgets may have together: seconds
_MAX_CHILD_SUMS = 20_000  # the same for the children of two parents: milliseconds
_MAX_ENUMERATED = 1_000_000
_TOGETHER = 16  # draws looked at together once a first one was refused
_MAX_KNOWN = 1 << 16  # answers of filters that are remembered
_MAX_FILTERED = 100_000  # architectures that are filtered one by one to count them: seconds


class NoneFound(EmptySet):
    """As many draws as were allowed met the budgets that are exact and none of the others."""


@dataclass(frozen=True)
class Attainable:
    """The least and the greatest cost in a space, with architectures that have them."""

    low: int
    high: int
    low_arch: Arch
    high_arch: Arch


class Feasible:
    """The architectures of a space that meet every budget and predicate; a `nasx.space.ArchSet`.

    Budgets whose costs are additive are met exactly: all of them together where few enough combinations of their sums
    occur, else the first. Any others, and predicates, filter the draws: at most `max_tries` for each architecture that
    is asked for, and `acceptance` says how many passed. Budgets on one cost count as one budget, and percentages become
    numbers (`Budget.resolved`).

    Raises EmptySet, with the attainable range, where it is certain that nothing is inside, and NoneFound where
    `max_tries` draws met nothing.
    """

    def __init__(
        self,
        space: Space,
        budgets: Sequence[Budget] = (),
        predicates: Sequence[ArchPredicate] = (),
        *,
        max_bytes: int = MAX_BYTES,
        max_tries: int = MAX_TRIES,
    ) -> None:
        self.space = space
        self.budgets = _merged([_checked(budget).resolved(space) for budget in budgets], space)
        self.predicates = tuple(predicates)
        self.max_bytes, self.max_tries = max_bytes, max_tries
        additive = [budget for budget in self.budgets if isinstance(budget.cost, AdditiveCost)]
        others = [budget for budget in self.budgets if not isinstance(budget.cost, AdditiveCost)]
        self._tables = _Tables.of(space, additive, max_bytes, _MAX_SUMS) if additive else None
        self._filter = _Filter(others, self.predicates).with_left(self._tables.left if self._tables else ())
        self._inside: _Inside | _Whole
        if self._tables:
            self._inside = _Inside(self._tables, self._filter, max_tries, _DrawCounts())
            self._refuse_empty(self._tables)
        else:
            self._inside = _Whole(space, self._filter, max_tries, _DrawCounts())
        if self._inside.rejects:
            self._inside.with_counts(_DrawCounts()).draw(np.random.default_rng(0), 1)

    def __repr__(self) -> str:
        conditions = "; ".join([*map(str, self.budgets), *map(_named, self.predicates)])
        return f"Feasible({', '.join(filter(None, [repr(self.space), conditions]))})"

    def _refuse_empty(self, tables: "_Tables") -> None:
        first, inside_first = tables.additive[0], tables
        if tables.empty and len(tables.exact) > 1:
            inside_first = _Tables.of(self.space, [first], self.max_bytes, 0)
        if inside_first.empty:
            nearest = inside_first.nearest(first)
            raise EmptySet(_nothing_inside(first, inside_first.attainable(), nearest))
        for budget in tables.additive[1:]:
            costs = inside_first.costs_of(budget.cost)
            reach, low, high = _extremes(tables.cases, costs), *inside_first.range_of(costs)
            if budget.lower > reach.high or budget.upper < reach.low:
                raise EmptySet(_nothing_inside(budget, reach))
            if budget.lower > high or budget.upper < low:
                raise EmptySet(
                    f"no architecture meets both {first} and {budget}: inside the first, {low:,} to {high:,} "
                    f"{budget.unit} are attainable; change {_bounds(budget)} or {_bounds(first)}"
                )
        if tables.empty:
            raise EmptySet(
                f"no architecture meets {' and '.join(map(str, tables.exact))} at once, though some meet each of them; "
                f"change {' or '.join(map(_bounds, tables.exact))}"
            )

    # Counting

    @cached_property
    def size(self) -> int:
        """Number of architectures, exact; a ValueError where it is only known as an interval (`size_bounds`)."""
        low, high = self.size_bounds
        if low == high:
            return low
        if high > (_MAX_FILTERED if self._filter else _MAX_ENUMERATED):
            raise ValueError(f"the exact count is not known: between {low} and {high} architectures (see size_bounds)")
        return sum(1 for _ in self)

    @cached_property
    def size_bounds(self) -> tuple[int, int]:
        """Least and greatest possible number of architectures; equal where costs were neither bucketed nor filtered."""
        low, high = self._tables.count_bounds() if self._tables else self.space.size_bounds
        return (0 if self._filter else low), high

    @property
    def acceptance(self) -> float:
        """Share of the draws so far that passed the exact bucketed cost and the filters; 1.0 before any.

        Draws of children, by mutation and crossover, count too.
        """
        return self._inside.counts.acceptance

    def with_fresh_counts(self) -> "Feasible":
        """Return the same set with an `acceptance` of its own; the tables are shared."""
        same = copy.copy(self)
        same._inside = self._inside.with_counts(_DrawCounts())
        return same

    @cached_property
    def attainable(self) -> Attainable:
        """The range of the first additive cost over the whole space, budgets and predicates aside.

        A ValueError says that no budget has an additive cost, so that the range is not known.
        """
        if self._tables is None:
            raise ValueError(
                "the attainable range is not known: none of the budgets has an AdditiveCost, and other costs are only "
                "known of the architectures that are drawn"
            )
        return self._tables.attainable()

    # Smaller sets

    def pin(self, entries: Mapping[str, Value | Predicate]) -> "Feasible":
        """Return the architectures that the pinned space has inside the same budgets (`Space.pin`)."""
        return self._like(self.space.pin(entries), self.budgets, self.predicates)

    def within(self, *budgets: Budget) -> "Feasible":
        """Return the architectures that meet further budgets as well."""
        return self._like(self.space, (*self.budgets, *budgets), self.predicates)

    def where(self, predicate: ArchPredicate) -> "Feasible":
        """Return the architectures for which a predicate holds as well."""
        return self._like(self.space, self.budgets, (*self.predicates, predicate))

    def _like(self, space: Space, budgets: Sequence[Budget], predicates: Sequence[ArchPredicate]) -> "Feasible":
        return Feasible(space, budgets, predicates, max_bytes=self.max_bytes, max_tries=self.max_tries)

    # Membership and enumeration

    def __contains__(self, arch: object) -> bool:
        try:
            found = self.space.canonical(arch)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return False
        return self._inside.holds(found)

    def __iter__(self) -> Iterator[Arch]:
        return filter(self._filter.passes, self._tables.enumerate() if self._tables else self.space)

    def canonical(self, arch: Mapping[str, Value]) -> Arch:
        """Return the architecture in the space's order; a ValueError names the entry or the budget it misses."""
        found = self.space.canonical(arch)
        for budget in self.budgets:
            amount = budget.amount(found)
            if not budget.holds(amount):
                raise ValueError(f"the architecture has {amount:,} {budget.unit}, outside {budget}")
        for predicate in self.predicates:
            if not predicate(found):
                raise ValueError(f"the architecture does not pass {_named(predicate)}")
        return found

    def genes(self, arch: Mapping[str, Value]) -> tuple[str, ...]:
        """Return the names of an architecture's choices that had an alternative in the space."""
        return self.space.genes(arch)

    def neighbours(self, arch: Mapping[str, Value]) -> Iterator[Arch]:
        """Yield every architecture of the set that differs in one gene."""
        return filter(self._inside.holds, self.space.neighbours(arch))

    # Draws

    @overload
    def sample(self, rng: Rng) -> Arch: ...
    @overload
    def sample(self, rng: Rng, n: int) -> Sequence[Arch]: ...
    def sample(self, rng: Rng, n: int | None = None) -> Arch | Sequence[Arch]:
        """Draw one architecture, or `n` that decode on access, uniformly over all of the set."""
        n = checked_count(n)
        drawn = self._inside.draw(as_generator(rng), 1 if n is None else n)
        return drawn[0] if n is None else drawn

    def sample_per_choice(self, rng: Rng) -> Arch:
        """Draw each choice uniformly among the options from which the budget can still be met, one after the other."""
        return self._inside.draw_per_choice(as_generator(rng))

    def mutate(self, arch: Mapping[str, Value], rng: Rng, probability: Probability = 0.1) -> Arch:
        """Draw a child with some genes drawn again, uniformly among those that keep the total inside the budgets.

        Genes may have probabilities of their own, as in `Space.mutate`.
        """
        generator = as_generator(rng)
        genes = pick_genes(self.space.genes(arch), generator, probability)
        return self._inside.child(self.space.mutations(arch, genes), generator)

    def crossover(self, first: Mapping[str, Value], second: Mapping[str, Value], rng: Rng) -> Arch:
        """Draw a child that has each gene from either parent, uniformly among those inside the budgets."""
        return self._inside.child(self.space.crossings(first, second), as_generator(rng))


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
    return _extremes(cases, _costs(cases, cost))


def _extremes(cases: Sequence[Case], costs: "_Costs") -> Attainable:
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


@dataclass(slots=True)
class _DrawCounts:
    """How many draws were made, and how many passed: shared by a set and the children bred inside it."""

    proposed: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        return self.accepted / self.proposed if self.proposed else 1.0


class _Limit:
    """A budget that draws must meet, with the least and the greatest cost so far."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._met: list[float] = []

    def holds(self, arch: Arch) -> bool:
        amount = self.budget.amount(arch)
        self._met = [min([*self._met, amount]), max([*self._met, amount])]
        return self.budget.holds(amount)

    def __str__(self) -> str:
        met = self._met
        return f"{self.budget}{f' (those drawn had {met[0]:,} to {met[1]:,})' if met else ''}"


class _Filter:
    """Budgets and predicates that draws must pass; what an architecture met is remembered, for costs may be slow.

    The budgets that tables leave come first (`with_left`). Their costs add up and are quick, so they are asked again.
    """

    def __init__(self, budgets: Sequence[Budget], predicates: Sequence[ArchPredicate]) -> None:
        self._left: list[_Limit] = []
        self._limits, self._predicates = [_Limit(budget) for budget in budgets], tuple(predicates)
        self._known: dict[Arch, bool] = {}

    def with_left(self, left: Sequence[Budget]) -> "_Filter":
        """Return the filter of the same conditions and of the budgets that tables leave."""
        same = copy.copy(self)
        same._left = [_Limit(budget) for budget in left]
        return same

    @property
    def budgets(self) -> list[Budget]:
        return [limit.budget for limit in (*self._left, *self._limits)]

    def __bool__(self) -> bool:
        return bool(self._left or self._limits or self._predicates)

    def passes(self, arch: Arch) -> bool:
        return all(limit.holds(arch) for limit in self._left) and self._remembered(arch)

    def _remembered(self, arch: Arch) -> bool:
        if not self._limits and not self._predicates:
            return True
        passed = self._known.get(arch)
        if passed is None:
            passed = all(limit.holds(arch) for limit in self._limits) and all(ask(arch) for ask in self._predicates)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[arch] = passed  # which another thread may clear at once
        return passed

    def __str__(self) -> str:
        return " and ".join([*map(str, self._left), *map(str, self._limits), *map(_named, self._predicates)])


_Costs = list[tuple[int, list[Ints]]]
"""Of each case, the fixed cost and the costs of each slot's options."""


class _Tables:
    """A space inside additive budgets, case by case: those in `exact` are met, those in `left` are left to filters."""

    def __init__(
        self,
        additive: Sequence[Budget],
        cases: Sequence[Case],
        costs: _Costs,
        tables: Sequence[SumTable],
        *,
        exact: int,
        max_bytes: int,
    ) -> None:
        self.additive, self._max_bytes = tuple(additive), max_bytes
        self.exact, self.left = self.additive[:exact], self.additive[exact:]
        self.cases, self.tables, self._first_costs = cases, tables, costs
        log_ways = np.array([table.log_ways for table in tables])
        self.empty = bool(np.all(np.isneginf(log_ways)))
        if not self.empty:
            weights = np.exp(log_ways - log_ways.max())
            self.weights: npt.NDArray[np.float64] = weights / weights.sum()

    @classmethod
    def of(cls, space: Space, additive: Sequence[Budget], max_bytes: int, max_sums: int) -> "_Tables":
        cases = list(cases_of(space))
        costs = [_costs(cases, budget.cost) for budget in additive]
        if len(additive) > 1 and (joint := _joint_tables(additive, costs, max_sums // len(cases))) is not None:
            return cls(additive, cases, costs[0], joint, exact=len(additive), max_bytes=max_bytes)
        first, each = additive[0], max_bytes // len(cases)
        tables = [
            SumTable.of(slots, first.lower - fixed, first.upper - fixed, max_bytes=each) for fixed, slots in costs[0]
        ]
        return cls(additive, cases, costs[0], tables, exact=1, max_bytes=max_bytes)

    def narrowed(self, children: Space, max_sums: int) -> "_Tables":
        """Return the tables of some children inside the same budgets."""
        return _Tables.of(children, self.additive, self._max_bytes, max_sums)

    @property
    def bucketed(self) -> bool:
        """Whether an architecture that is drawn can be outside of an exact budget."""
        return any(table.bucketed for table in self.tables)

    def costs_of(self, cost: Cost) -> _Costs:
        return _costs(self.cases, cost)

    def attainable(self) -> Attainable:
        """Return the range of the first budget's cost, whatever its bounds."""
        return _extremes(self.cases, self._first_costs)

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
        counts = [table.count_bounds() for table in self.tables]
        return sum(low for low, _ in counts), sum(high for _, high in counts)

    def range_of(self, costs: _Costs) -> tuple[int, int]:
        """Return the range of another cost inside, or a little more where costs were bucketed."""
        found = [
            (fixed + inside[0], fixed + inside[1])
            for table, (fixed, slots) in zip(self.tables, costs, strict=True)
            if (inside := table.range_of(slots)) is not None
        ]
        return min(low for low, _ in found), max(high for _, high in found)

    def enumerate(self) -> Iterator[Arch]:
        for case, table in zip(self.cases, self.tables, strict=True):
            for options in table.enumerate():
                yield case.decode(options)


def _costs(cases: Sequence[Case], cost: Cost) -> _Costs:
    assert isinstance(cost, AdditiveCost)
    return [costs_of(case, cost) for case in cases]


def _joint_tables(additive: Sequence[Budget], costs: Sequence[_Costs], max_sums: int) -> list[SumTable] | None:
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


class _Inside:
    """Draws from tables that pass a filter."""

    def __init__(self, tables: _Tables, passing: _Filter, max_tries: int, counts: _DrawCounts) -> None:
        self.tables, self.counts = tables, counts
        self._filter, self._max_tries = passing, max_tries

    def child(self, children: Space, rng: np.random.Generator) -> Arch:
        """Draw one of the children of architectures; the draw counts with these."""
        tables = self.tables.narrowed(children, _MAX_CHILD_SUMS)
        try:
            return self._drawn_child(tables, rng)
        except NoneFound:
            if len(tables.left) <= len(self.tables.left):
                raise
            return self._drawn_child(self.tables.narrowed(children, _MAX_SUMS), rng)  # as exact as the parents' set

    def _drawn_child(self, tables: _Tables, rng: np.random.Generator) -> Arch:
        if tables.empty:
            budgets = " and ".join(map(str, self.tables.additive))
            raise EmptySet(f"no child is inside {budgets}; give parents that are inside themselves")
        passing = self._filter.with_left(tables.left)
        return _Inside(tables, passing, self._max_tries, self.counts).draw(rng, 1)[0]

    def with_counts(self, counts: _DrawCounts) -> "_Inside":
        return _Inside(self.tables, self._filter, self._max_tries, counts)

    @property
    def rejects(self) -> bool:
        """Whether draws from the tables can fail to be inside."""
        return bool(self._filter) or self.tables.bucketed

    def holds(self, arch: Arch) -> bool:
        """Whether an architecture of the space is inside."""
        return all(arch in budget for budget in self.tables.exact) and self._filter.passes(arch)

    def draw(self, rng: np.random.Generator, n: int) -> Sequence[Arch]:
        cases = self._pick_cases(rng, n)
        drawn: list[Ints | None] = [None] * n
        missing, tries = np.arange(n), 0
        while tries < self._max_tries:
            # A draw at a time costs most of its time in numpy's calls. Only within one case may several be looked at
            # before the case is picked again, or cases that pass rarely would be favoured.
            each = min(_TOGETHER, self._max_tries - tries) if tries and len(self.tables.cases) == 1 else 1
            failed = []
            for c in np.unique(cases[missing]):
                places = missing[cases[missing] == c]
                rows, inside = self.tables.tables[c].draw(rng, each * len(places))
                for number, place in enumerate(places.tolist()):
                    own = slice(number * each, (number + 1) * each)
                    drawn[place] = self._first_inside(self.tables.cases[c], rows[own], inside[own])
                    if drawn[place] is None:
                        failed.append(place)
            self.counts.accepted += len(missing) - len(failed)
            if not failed:
                return Draws(n, partial(_decoded, self.tables.cases, cases, drawn))
            missing = np.array(failed)
            # a refused draw starts over, or cases that pass rarely would be favoured
            cases[missing] = self._pick_cases(rng, len(missing))
            tries += each
        raise _none_found(self._max_tries, self.tables.exact, self._filter)

    def _first_inside(self, case: Case, rows: Ints, inside: npt.NDArray[np.bool_]) -> Ints | None:
        for row, ok in zip(rows, inside, strict=True):
            self.counts.proposed += 1
            if ok and (not self._filter or self._filter.passes(case.decode(row))):
                return row
        return None

    def draw_per_choice(self, rng: np.random.Generator) -> Arch:
        shared = [i for i, table in enumerate(self.tables.tables) if not table.empty]
        for _ in range(self._max_tries):
            c = shared[_choose([self.tables.cases[i].shared for i in shared], rng)]
            case, table = self.tables.cases[c], self.tables.tables[c]
            taken: list[int] = []
            for slot in case.slots:
                options = table.open_options(taken)
                taken.append(int(options[_choose([slot.options[j] for j in options], rng)]))
            arch = case.decode(taken)
            if self.holds(arch):
                return arch
        raise _none_found(self._max_tries, self.tables.exact, self._filter)

    def _pick_cases(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
        if len(self.tables.cases) == 1:
            return np.zeros(n, np.int64)
        return rng.choice(len(self.tables.cases), size=n, p=self.tables.weights)


def _decoded(cases: Sequence[Case], picked: npt.NDArray[np.int64], drawn: Sequence[Any], at: int) -> Arch:
    return cases[picked[at]].decode(drawn[at])


class _Whole:
    """Draws from a whole space that pass a filter; no table is made, so no space is too large."""

    def __init__(self, space: Space, passing: _Filter, max_tries: int, counts: _DrawCounts) -> None:
        self.counts = counts
        self._space, self._filter, self._max_tries = space, passing, max_tries

    def child(self, children: Space, rng: np.random.Generator) -> Arch:
        """Draw one of the children of architectures; the draw counts with these."""
        return _Whole(children, self._filter, self._max_tries, self.counts).draw(rng, 1)[0]

    def with_counts(self, counts: _DrawCounts) -> "_Whole":
        return _Whole(self._space, self._filter, self._max_tries, counts)

    @property
    def rejects(self) -> bool:
        """Whether draws from the space can fail to be inside."""
        return bool(self._filter)

    def holds(self, arch: Arch) -> bool:
        """Whether an architecture of the space is inside."""
        return self._filter.passes(arch)

    def draw(self, rng: np.random.Generator, n: int) -> Sequence[Arch]:
        if not self._filter:
            return self._space.sample(rng, n)
        return [self._first_inside(self._space.sample, rng) for _ in range(n)]

    def draw_per_choice(self, rng: np.random.Generator) -> Arch:
        return self._first_inside(self._space.sample_per_choice, rng)

    def _first_inside(self, draw: Callable[[np.random.Generator], Arch], rng: np.random.Generator) -> Arch:
        for _ in range(self._max_tries):
            arch = draw(rng)
            self.counts.proposed += 1
            if self._filter.passes(arch):
                self.counts.accepted += 1
                return arch
        raise _none_found(self._max_tries, (), self._filter)


def _none_found(tries: int, exact: Sequence[Budget], passing: _Filter) -> NoneFound:
    inside = f" inside {' and '.join(map(str, exact))}" if exact else ""
    wanted = f" meets {passing}" if passing else " has an exact cost inside it"
    bounds = [_bounds(budget) for budget in (*exact, *passing.budgets) if _bounds(budget)]
    mend = f"loosen {' or '.join(dict.fromkeys(bounds))}" if bounds else "loosen the predicate"
    return NoneFound(f"none of {tries:,} architectures drawn{inside}{wanted}; {mend}")


def _checked(budget: Any) -> Budget:
    if isinstance(budget, list | tuple | set | frozenset | Iterator):
        raise TypeError(f"`within` takes budgets one by one, but got {budget!r}; write within(*budgets)")
    if not isinstance(budget, Budget):
        name = getattr(budget, "__name__", type(budget).__name__).lower().strip("<>") if callable(budget) else "cost"
        bound = repr(budget) if isinstance(budget, int | float | str) else "..."
        raise TypeError(f"`within` takes budgets, but got {budget!r}; write Budget({name}, at_most={bound})")
    return budget


def _merged(budgets: Sequence[Budget], space: Space) -> tuple[Budget, ...]:
    """Return the budgets with those on one cost made one; EmptySet where they contradict each other."""
    merged: list[Budget] = []
    for budget in budgets:
        at = next((i for i, other in enumerate(merged) if _same(other.cost, budget.cost)), None)
        if at is None:
            merged.append(budget)
        else:
            merged[at] = _both(merged[at], budget, space)
    return tuple(merged)


def _both(first: Budget, second: Budget, space: Space) -> Budget:
    try:
        return first.and_also(second)
    except ValueError as error:
        reach = attainable(space, first.cost) if isinstance(first.cost, AdditiveCost) else None
        range_ = f"; attainable are {reach.low:,} to {reach.high:,} {first.unit}".rstrip() if reach else ""
        raise EmptySet(f"no architecture meets both {first} and {second}: {error}{range_}") from None


def _same(first: object, second: object) -> bool:
    if type(first) is not type(second):
        return False
    try:
        return first is second or bool(first == second)
    except (TypeError, ValueError, RuntimeError):  # of costs that hold arrays: two budgets hold as one does
        return False


def _nothing_inside(budget: Budget, reach: Attainable, nearest: tuple[int, int] | None = None) -> str:
    hint = " (write 1.4G for 1,400,000,000, or 40% for a share of the largest)"
    return (
        f"the budget of {budget} holds no architecture of this space; "
        f"attainable are {reach.low:,} to {reach.high:,} {budget.unit}".rstrip()
        + (f", the nearest of them {nearest[0]:,} and {nearest[1]:,}" if nearest else "")
        + f"; change {_bounds(budget)}"
        + (hint if budget.upper * 1000 < reach.low else "")
    )


def _bounds(budget: Budget) -> str:
    """Return what the bounds are called that a budget has."""
    pairs = zip(budget.names, (budget.at_least, budget.at_most), strict=True)
    return " or ".join(name for name, bound in pairs if bound is not None)


def _named(predicate: ArchPredicate) -> str:
    return f"the predicate {getattr(predicate, '__name__', repr(predicate))}"


def _choose(candidates: Sequence[Mapping[str, Value]], rng: np.random.Generator) -> int:
    """Pick a candidate by drawing each entry in order; names are the same up to the entry where candidates differ."""
    left = list(range(len(candidates)))
    entries = [list(candidate.items()) for candidate in candidates]
    place = 0
    while len(left) > 1:
        values = list(dict.fromkeys(entries[i][place][1] for i in left))
        value = values[rng.integers(len(values))] if len(values) > 1 else values[0]
        left = [i for i in left if entries[i][place][1] == value]
        place += 1
    return left[0]
