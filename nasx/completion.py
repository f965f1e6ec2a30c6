"""What a first stage may choose so that a second one can still meet its budget: partial choices and their completions.

A hierarchical search decides some choices first, with the others held, and the others later. Of the first stage's
architectures only those are of use from which the second stage's budget can be reached.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np

from nasx._cases import cases_of, parts_of, shared_space
from nasx.arch import Arch, Value, matches, split
from nasx.cost import AdditiveCost, Budget
from nasx.feasible import MAX_BYTES, Feasible
from nasx.space import ArchSet, EmptySet, Space, name_patterns
from nasx.sums import SumTable

__all__ = ["completable"]


def completable(archs: ArchSet, completions: ArchSet, *patterns: str) -> Feasible:
    """Return those of `archs` that another set completes.

    An architecture is completed where some architecture of `completions` agrees with it on the names that a pattern
    matches (`*` is one segment): it has the same value, or, as in `Space.pin`, it has no such name, which other
    architectures of `completions` have. Other entries do not matter. So the first stage of a hierarchical search keeps
    what its second stage can bring into the budget.

    The cheapest and the costliest completions are additive costs again wherever the patterns decide all shared choices
    of `completions`, so most of what is not completable, and an empty result, are known from sums; what is left is
    checked architecture by architecture. Raises ValueError for a pattern that matches no name, and EmptySet, with what
    is attainable, where nothing is completable.

    Examples:
        >>> heads = completable(heads_space.within(upper), joint_space.within(budget), "block.*.global_heads")
    """
    for some in (archs, completions):
        choices = list(some.space.walk())
        for pattern in patterns:
            if not any(matches(pattern, name) for name, _ in choices):
                known = ", ".join(name_patterns(choices))
                raise ValueError(f"{pattern!r} matches no name of the space; it has {known}")
    sums = _sums_of(archs.space, completions, patterns)
    bounds = [bound for each in sums for bound in each.bounds()]
    return archs.within(*bounds).where(_Completable(completions, patterns, sums))


class _Completable:
    """Whether an architecture has a completion; a class, so that sets can be sent to other processes."""

    def __init__(self, completions: ArchSet, patterns: tuple[str, ...], sums: "list[_Sums]") -> None:
        self._completions, self._patterns = completions, patterns
        self._names = {name for name, _ in completions.space.walk()}
        alone = len(sums) == len(completions.budgets) == 1 and not completions.predicates
        self._exact = sums[0] if alone else None

    def __repr__(self) -> str:
        return f"that {', '.join(self._patterns)} can be completed"

    def __call__(self, arch: Arch) -> bool:
        kept = arch.only(*self._patterns)
        if not self._names.issuperset(kept):
            return False
        answer = self._exact.is_reached(arch) if self._exact else None
        if answer is not None:
            return answer
        try:
            self._completions.pin(kept)
        except EmptySet:
            return False
        return True


def _sums_of(first: Space, completions: ArchSet, patterns: tuple[str, ...]) -> "list[_Sums]":
    """Return the additive budgets of the completions; none where a free shared choice couples their parts."""
    for name, choice in shared_space(completions.space).walk():
        if len(choice.options) > 1 and not any(matches(pattern, name) for pattern in patterns):
            return []
    found = [
        _Sums(budget.cost, budget, first, completions.space, patterns)
        for budget in completions.budgets
        if isinstance(budget.cost, AdditiveCost)
    ]
    # an architecture may lack a shared choice that a pattern would decide
    undecided = bool(found) and any(len(found[0].shared(case.shared)) > 1 for case in cases_of(first))
    return [] if undecided else found


@dataclass(frozen=True)
class _Sums:
    """What the completions of an architecture of `first` cost, part by part."""

    cost: AdditiveCost
    budget: Budget
    first: Space
    space: Space
    patterns: tuple[str, ...]
    _shared: dict[Arch, Sequence[Arch]] = field(default_factory=dict, compare=False, repr=False)
    _parts: dict[tuple[str, int, Arch, Arch], tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    _reached: dict[tuple[int, tuple[tuple[int, ...], ...]], bool | None] = field(
        default_factory=dict, compare=False, repr=False
    )

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.space.walk())

    def bounds(self) -> list[Budget]:
        """Return what the cheapest and the costliest completion of an architecture must cost."""
        found = []
        if math.isfinite(self.budget.upper):
            found.append(Budget(_Extreme(self, "cheapest"), at_most=self.budget.upper, names=self.budget.names))
        if math.isfinite(self.budget.lower):
            found.append(Budget(_Extreme(self, "costliest"), at_least=self.budget.lower, names=self.budget.names))
        return found

    def is_reached(self, arch: Arch) -> bool | None:
        """Whether some completion is inside the budget; None where a table of sums would be too large to tell."""
        shared, parts = split(arch)
        if not (completed := self.shared(shared)):
            return False
        slots = [
            self.part(name, index, shared, parts.get((name, index), {}))
            for name, index in parts_of(self.space, completed[0])
        ]
        if not all(slots):
            return False
        key = self.cost.fixed(completed[0]), tuple(sorted(slots))  # the order of parts does not matter any more
        if key not in self._reached:
            costs = [np.array(slot) for slot in slots]
            table = SumTable.of(costs, self.budget.lower - key[0], self.budget.upper - key[0], max_bytes=MAX_BYTES)
            self._reached[key] = None if table.bucketed and not table.empty else not table.empty
        return self._reached[key]

    def shared(self, shared: Mapping[str, Value]) -> Sequence[Arch]:
        """Return assignments of the completions' shared choices: none, the only one, or the first two."""
        key = Arch.joined(shared)
        if key not in self._shared:
            decided = {name: value for name, value in shared.items() if self._decides(name)}
            try:
                found = shared_space(self.space).pin(decided)
                self._shared[key] = tuple(islice(found, 2))
            except ValueError:  # no such value, or no such name
                self._shared[key] = ()
        return self._shared[key]

    def added(self, shared: Mapping[str, Value]) -> list[tuple[int, ...]]:
        """Return the costs of each part that the completions have beside those of the architecture."""
        own = parts_of(self.first, shared)
        completed = parts_of(self.space, self.shared(shared)[0])
        return [self.part(name, index, shared, {}) for name, index in completed if (name, index) not in own]

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> tuple[int, ...]:
        """Return the distinct costs of the completions of a part, sorted; none where it has no completion."""
        kept = {n: value for n, value in choices.items() if self._decides(f"{name}.{index}.{n}")}
        key = name, index, Arch.joined(shared), Arch.joined(kept)
        if key not in self._parts:
            self._parts[key] = tuple(sorted(self._costs(name, index, shared, kept)))
        return self._parts[key]

    def _costs(self, name: str, index: int, shared: Mapping[str, Value], kept: Mapping[str, Value]) -> set[int]:
        if not (completed := self.shared(shared)):
            return set()
        part = parts_of(self.space, completed[0]).get((name, index))
        if part is None:  # these completions have no such part, which is agreement where others have it
            return {0} if all(f"{name}.{index}.{n}" in self._names for n in kept) else set()
        agreeing = (o for o in part if all(o.get(n, value) == value for n, value in kept.items()))
        return {self.cost.part(name, index, completed[0], o) for o in agreeing}

    def _decides(self, name: str) -> bool:
        return any(matches(pattern, name) for pattern in self.patterns)


@dataclass(frozen=True)
class _Extreme(AdditiveCost):
    """The cost of an architecture's cheapest or costliest completion."""

    sums: _Sums
    which: str

    @property
    def unit(self) -> str:  # type: ignore[override]
        """What is counted, and of which completion."""
        return f"{self.sums.cost.unit} in the {self.which} completion".lstrip()

    @property
    def _without(self) -> int:
        """What is outside the budget: the cost of that which has no completion."""
        return int(self.sums.budget.upper) + 1 if self.which == "cheapest" else 0

    def fixed(self, shared: Mapping[str, Value]) -> int:
        completed = self.sums.shared(shared)
        if not completed:
            return self._without
        return self.sums.cost.fixed(completed[0]) + sum(map(self._extreme, self.sums.added(shared)))

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        costs = self.sums.part(name, index, shared, choices)
        return self._extreme(costs) if costs else self._without

    def _extreme(self, costs: tuple[int, ...]) -> int:
        return costs[0] if self.which == "cheapest" else costs[-1]
