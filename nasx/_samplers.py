"""Uniform draws of architectures inside budgets: from tables, or from the whole space where no cost adds up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nasx._cases import Case
from nasx._filters import Filter, Limit, bounds_of, name_of
from nasx._tables import MAX_SUMS, Tables
from nasx.arch import Arch, Value
from nasx.cost import Budget
from nasx.space import Draws, EmptySet, Space
from nasx.sums import Ints

MAX_TRIES = 1_000
"""Draws for one architecture before the filters are said to meet none."""

_MAX_CHILD_SUMS = 20_000  # combinations of sums that the children of two parents may have together: milliseconds
_TOGETHER = 16  # draws looked at together once a first one was refused


class NoneFound(EmptySet):
    """As many draws as were allowed met the budgets that are exact and none of the others."""


@dataclass(slots=True)
class DrawCounts:
    """How many draws were made, and how many passed: shared by a set and the children bred inside it."""

    proposed: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        return self.accepted / self.proposed if self.proposed else 1.0


class Sampler(Protocol):
    """Draws architectures that are inside some conditions; NoneFound says that too many draws in a row were not."""

    @property
    def counts(self) -> DrawCounts:
        """How many draws were made so far."""

    @property
    def rejects(self) -> bool:
        """Whether a draw can be outside, and be made again."""

    def with_fresh_counts(self) -> "Sampler":
        """Return the same sampler with counts of its own."""

    def holds(self, arch: Arch) -> bool:
        """Whether an architecture of the space is inside."""

    def draw(self, rng: np.random.Generator, n: int) -> Sequence[Arch]:
        """Draw `n` architectures, uniformly over all that are inside."""

    def draw_per_choice(self, rng: np.random.Generator) -> Arch:
        """Draw one architecture, each choice uniformly among the options that are open."""

    def draw_child(self, children: Space, rng: np.random.Generator) -> Arch:
        """Draw one of the children of architectures, uniformly; the draw counts with these."""


@dataclass(frozen=True, slots=True)
class TableSampler:
    """Draws from tables that pass a filter."""

    tables: Tables
    filter: Filter
    max_tries: int
    counts: DrawCounts = field(default_factory=DrawCounts)

    @property
    def rejects(self) -> bool:
        return self._filters or self.tables.bucketed

    def with_fresh_counts(self) -> "TableSampler":
        return replace(self, counts=DrawCounts())

    def holds(self, arch: Arch) -> bool:
        return self.tables.holds(arch) and self.filter.passes(arch)

    def draw(self, rng: np.random.Generator, n: int) -> Sequence[Arch]:
        cases = self._pick_cases(rng, n)
        drawn: list[Ints | None] = [None] * n
        missing, tries = np.arange(n), 0
        while tries < self.max_tries:
            # A draw at a time costs most of its time in numpy's calls. Only within one case may several be looked at
            # before the case is picked again, or cases that pass rarely would be favoured.
            each = min(_TOGETHER, self.max_tries - tries) if tries and len(self.tables.cases) == 1 else 1
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
        raise self._none_found()

    def draw_per_choice(self, rng: np.random.Generator) -> Arch:
        shared = [i for i, table in enumerate(self.tables.tables) if not table.empty]
        for _ in range(self.max_tries):
            c = shared[_choose([self.tables.cases[i].shared for i in shared], rng)]
            case, table = self.tables.cases[c], self.tables.tables[c]
            taken: list[int] = []
            for slot in case.slots:
                options = table.open_options(taken)
                taken.append(int(options[_choose([slot.options[j] for j in options], rng)]))
            arch = case.decode(taken)
            if self.holds(arch):
                return arch
        raise self._none_found()

    def draw_child(self, children: Space, rng: np.random.Generator) -> Arch:
        tables = self.tables.narrowed(children, _MAX_CHILD_SUMS)
        try:
            return self._drawn_child(tables, rng)
        except NoneFound:
            if len(tables.left) <= len(self.tables.left):
                raise
            return self._drawn_child(self.tables.narrowed(children, MAX_SUMS), rng)  # as exact as the parents' set

    def _drawn_child(self, tables: Tables, rng: np.random.Generator) -> Arch:
        if tables.empty:
            budgets = " and ".join(map(str, self.tables.additive))
            raise EmptySet(f"no child is inside {budgets}; give parents that are inside themselves")
        return replace(self, tables=tables).draw(rng, 1)[0]

    @property
    def _filters(self) -> bool:
        return bool(self.tables.left or self.filter)

    def _passes(self, arch: Arch) -> bool:
        return self.tables.passes(arch) and self.filter.passes(arch)

    def _first_inside(self, case: Case, rows: Ints, inside: npt.NDArray[np.bool_]) -> Ints | None:
        for row, ok in zip(rows, inside, strict=True):
            self.counts.proposed += 1
            if ok and (not self._filters or self._passes(case.decode(row))):
                return row
        return None

    def _pick_cases(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
        if len(self.tables.cases) == 1:
            return np.zeros(n, np.int64)
        return rng.choice(len(self.tables.cases), size=n, p=self.tables.weights)

    def _none_found(self) -> NoneFound:
        return _none_found(self.max_tries, self.filter, self.tables.exact, self.tables.left)


def _decoded(cases: Sequence[Case], picked: npt.NDArray[np.int64], drawn: Sequence[Any], at: int) -> Arch:
    return cases[picked[at]].decode(drawn[at])


@dataclass(frozen=True, slots=True)
class SpaceSampler:
    """Draws from a whole space that pass a filter; no table is made, so no space is too large."""

    space: Space
    filter: Filter
    max_tries: int
    counts: DrawCounts = field(default_factory=DrawCounts)

    @property
    def rejects(self) -> bool:
        return bool(self.filter)

    def with_fresh_counts(self) -> "SpaceSampler":
        return replace(self, counts=DrawCounts())

    def holds(self, arch: Arch) -> bool:
        return self.filter.passes(arch)

    def draw(self, rng: np.random.Generator, n: int) -> Sequence[Arch]:
        if not self.filter:
            return self.space.sample(rng, n)
        return [self._first_inside(self.space.sample, rng) for _ in range(n)]

    def draw_per_choice(self, rng: np.random.Generator) -> Arch:
        return self._first_inside(self.space.sample_per_choice, rng)

    def draw_child(self, children: Space, rng: np.random.Generator) -> Arch:
        return replace(self, space=children).draw(rng, 1)[0]

    def _first_inside(self, draw: Callable[[np.random.Generator], Arch], rng: np.random.Generator) -> Arch:
        for _ in range(self.max_tries):
            arch = draw(rng)
            self.counts.proposed += 1
            if self.filter.passes(arch):
                self.counts.accepted += 1
                return arch
        raise _none_found(self.max_tries, self.filter)


def _none_found(tries: int, passing: Filter, exact: Sequence[Budget] = (), left: Sequence[Limit] = ()) -> NoneFound:
    limits = [*left, *passing.limits]
    conditions = [*map(str, limits), *map(name_of, passing.predicates)]
    inside = f" inside {' and '.join(map(str, exact))}" if exact else ""
    wanted = f" meets {' and '.join(conditions)}" if conditions else " has an exact cost inside it"
    bounds = [*map(bounds_of, exact), *(bounds_of(limit.budget) for limit in limits)]
    mend = f"loosen {' or '.join(dict.fromkeys(filter(None, bounds)))}" if any(bounds) else "loosen the predicate"
    return NoneFound(f"none of {tries:,} architectures drawn{inside}{wanted}; {mend}")


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
