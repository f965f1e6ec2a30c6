"""The architectures inside a budget: counted exactly and drawn uniformly, without rejection.

A cost that adds up over parts (`nasx.cost.AdditiveCost`) turns the question into one about sums of integers: for each
assignment of the shared choices (a "case") a table says how many ways lead from every partial sum into the budget
(`nasx.sums`). Several additive costs are met together where the combinations of sums that occur are few enough.
Budgets on other costs, and predicates, filter the draws. Where no cost adds up there is no table: the draws that are
filtered are the whole space's.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from nasx._filters import ArchPredicate, Filter, bounds_of, checked_budget, name_of
from nasx._numbers import checked_count
from nasx._samplers import MAX_TRIES, NoneFound, Sampler, SpaceSampler, TableSampler
from nasx._tables import MAX_SUMS, Attainable, Tables, attainable, extremes
from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost, Budget
from nasx.space import EmptySet, Predicate, Probability, Rng, Space, as_generator, pick_genes

__all__ = ["MAX_BYTES", "MAX_TRIES", "ArchPredicate", "Attainable", "Feasible", "NoneFound", "attainable"]

MAX_BYTES = 512 << 20
"""Memory of all tables of a set, about."""

_MAX_ENUMERATED = 1_000_000
_MAX_FILTERED = 100_000  # architectures that are filtered one by one to count them: seconds


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
        self._tables = Tables.of(space, additive, max_bytes, MAX_SUMS) if additive else None
        self._filter = Filter(others, self.predicates)
        self._sampler: Sampler
        if self._tables:
            self._refuse_empty(self._tables)
            self._sampler = TableSampler(self._tables, self._filter, max_tries)
        else:
            self._sampler = SpaceSampler(space, self._filter, max_tries)
        if self._sampler.rejects:
            self._sampler.with_fresh_counts().draw(np.random.default_rng(0), 1)

    def __repr__(self) -> str:
        conditions = "; ".join([*map(str, self.budgets), *map(name_of, self.predicates)])
        return f"Feasible({', '.join(filter(None, [repr(self.space), conditions]))})"

    def _refuse_empty(self, tables: Tables) -> None:
        first, inside_first = tables.additive[0], tables
        if tables.empty and len(tables.exact) > 1:
            inside_first = Tables.of(self.space, [first], self.max_bytes, 0)
        if inside_first.empty:
            nearest = inside_first.nearest(first)
            raise EmptySet(_nothing_inside(first, inside_first.attainable(), nearest))
        for budget in tables.additive[1:]:
            costs = inside_first.costs_of(budget.cost)
            reach, low, high = extremes(tables.cases, costs), *inside_first.range_of(costs)
            if budget.lower > reach.high or budget.upper < reach.low:
                raise EmptySet(_nothing_inside(budget, reach))
            if budget.lower > high or budget.upper < low:
                raise EmptySet(
                    f"no architecture meets both {first} and {budget}: inside the first, {low:,} to {high:,} "
                    f"{budget.unit} are attainable; change {bounds_of(budget)} or {bounds_of(first)}"
                )
        if tables.empty:
            raise EmptySet(
                f"no architecture meets {' and '.join(map(str, tables.exact))} at once, though some meet each of them; "
                f"change {' or '.join(map(bounds_of, tables.exact))}"
            )

    # Counting

    @cached_property
    def size(self) -> int:
        """Number of architectures, exact; a ValueError where it is only known as an interval (`size_bounds`)."""
        low, high = self.size_bounds
        if low == high:
            return low
        filtered = self._filter or (self._tables and self._tables.left)
        if high > (_MAX_FILTERED if filtered else _MAX_ENUMERATED):
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
        return self._sampler.counts.acceptance

    def with_fresh_counts(self) -> "Feasible":
        """Return the same set with an `acceptance` of its own; the tables are shared."""
        same = copy.copy(self)
        same._sampler = self._sampler.with_fresh_counts()
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
        return self._sampler.holds(found)

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
                raise ValueError(f"the architecture does not pass {name_of(predicate)}")
        return found

    def genes(self, arch: Mapping[str, Value]) -> tuple[str, ...]:
        """Return the names of an architecture's choices that had an alternative in the space."""
        return self.space.genes(arch)

    def neighbours(self, arch: Mapping[str, Value]) -> Iterator[Arch]:
        """Yield every architecture of the set that differs in one gene."""
        return filter(self._sampler.holds, self.space.neighbours(arch))

    # Draws

    @overload
    def sample(self, rng: Rng) -> Arch: ...
    @overload
    def sample(self, rng: Rng, n: int) -> Sequence[Arch]: ...
    def sample(self, rng: Rng, n: int | None = None) -> Arch | Sequence[Arch]:
        """Draw one architecture, or `n` that decode on access, uniformly over all of the set."""
        n = checked_count(n)
        drawn = self._sampler.draw(as_generator(rng), 1 if n is None else n)
        return drawn[0] if n is None else drawn

    def sample_per_choice(self, rng: Rng) -> Arch:
        """Draw each choice uniformly among the options from which the budget can still be met, one after the other."""
        return self._sampler.draw_per_choice(as_generator(rng))

    def mutate(self, arch: Mapping[str, Value], rng: Rng, probability: Probability = 0.1) -> Arch:
        """Draw a child with some genes drawn again, uniformly among those that keep the total inside the budgets.

        Genes may have probabilities of their own, as in `Space.mutate`.
        """
        generator = as_generator(rng)
        genes = pick_genes(self.space.genes(arch), generator, probability)
        return self._sampler.draw_child(self.space.mutations(arch, genes), generator)

    def crossover(self, first: Mapping[str, Value], second: Mapping[str, Value], rng: Rng) -> Arch:
        """Draw a child that has each gene from either parent, uniformly among those inside the budgets."""
        return self._sampler.draw_child(self.space.crossings(first, second), as_generator(rng))


def _checked(budget: Any) -> Budget:
    if isinstance(budget, list | tuple | set | frozenset | Iterator):
        raise TypeError(f"`within` takes budgets one by one, but got {budget!r}; write within(*budgets)")
    return checked_budget(budget, "`within` takes budgets")


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
        + f"; change {bounds_of(budget)}"
        + (hint if budget.upper * 1000 < reach.low else "")
    )
