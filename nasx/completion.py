"""What a first stage may choose so that a second one can still meet its budget: partial choices and their completions.

A hierarchical search decides some choices first, with the others held, and the others later. Of the first stage's
architectures only those are of use from which the second stage's budget can be reached.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nasx._cases import shared_space
from nasx.arch import Arch, Value, matches
from nasx.cost import AdditiveCost, Budget, split
from nasx.feasible import MAX_BYTES, Feasible
from nasx.space import ArchSet, EmptySet, Space, name_patterns
from nasx.sums import SumTable

__all__ = ["completable"]


def completable(archs: ArchSet, completions: ArchSet, *patterns: str) -> Feasible:
    """Return those of `archs` that another set completes.

    An architecture is completed where some architecture of `completions` agrees with it on all names that a pattern
    matches (`*` is one segment); its other entries do not matter. So the first stage of a hierarchical search keeps
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
    sums = _sums_of(completions, patterns)
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


def _sums_of(completions: ArchSet, patterns: tuple[str, ...]) -> "list[_Sums]":
    """Return the additive budgets of the completions; none where a free shared choice couples their parts."""
    for name, choice in shared_space(completions.space).walk():
        if len(choice.options) > 1 and not any(matches(pattern, name) for pattern in patterns):
            return []
    return [
        _Sums(budget.cost, budget, completions.space, patterns)
        for budget in completions.budgets
        if isinstance(budget.cost, AdditiveCost)
    ]


@dataclass(frozen=True)
class _Sums:
    """What the completions of an architecture cost, part by part."""

    cost: AdditiveCost
    budget: Budget
    space: Space
    patterns: tuple[str, ...]
    _parts: dict[tuple[str, int, Arch, Arch], tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    _reached: dict[tuple[int, tuple[tuple[int, ...], ...]], bool | None] = field(
        default_factory=dict, compare=False, repr=False
    )

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
        completed = self.shared(shared)
        if completed is None:
            return False
        slots = [self.part(name, index, shared, choices) for (name, index), choices in parts.items()]
        if not all(slots):
            return False
        key = self.cost.fixed(completed), tuple(sorted(slots))  # the order of parts does not matter any more
        if key not in self._reached:
            costs = [np.array(slot) for slot in slots]
            table = SumTable(costs, self.budget.lower - key[0], self.budget.upper - key[0], max_bytes=MAX_BYTES)
            self._reached[key] = None if table.bucketed and not table.empty else not table.empty
        return self._reached[key]

    def shared(self, shared: Mapping[str, Value]) -> Arch | None:
        """Return the shared choices of the completions, None where there are none."""
        decided = {name: value for name, value in shared.items() if self._decides(name)}
        try:
            return shared_space(self.space).pin(decided)[0]
        except EmptySet:
            return None

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> tuple[int, ...]:
        """Return the distinct costs of the completions of a part, sorted; none where it has no completion."""
        kept = {n: value for n, value in choices.items() if self._decides(f"{name}.{index}.{n}")}
        key = name, index, Arch.joined(shared), Arch.joined(kept)
        if key not in self._parts:
            completed, parts = self.shared(shared), self.space.parts(name)
            options = parts[index] if completed is not None and index < len(parts) else ()
            agreeing = (o for o in options if all(o.get(n, value) == value for n, value in kept.items()))
            self._parts[key] = tuple(sorted({self.cost.part(name, index, completed or {}, o) for o in agreeing}))
        return self._parts[key]

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
        return self._without if completed is None else self.sums.cost.fixed(completed)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        costs = self.sums.part(name, index, shared, choices)
        if not costs:
            return self._without
        return costs[0] if self.which == "cheapest" else costs[-1]
