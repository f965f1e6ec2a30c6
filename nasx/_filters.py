"""Conditions that architectures are drawn until they meet, and what messages call them."""

from collections.abc import Callable, Sequence
from typing import Any

from nasx.arch import Arch
from nasx.cost import Budget

ArchPredicate = Callable[[Arch], bool]
"""Whether an architecture may be drawn."""

_MAX_KNOWN = 1 << 16  # answers that are remembered


class Limit:
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


class Filter:
    """Budgets and predicates that draws must pass; what an architecture met is remembered, for costs may be slow."""

    def __init__(self, budgets: Sequence[Budget], predicates: Sequence[ArchPredicate]) -> None:
        self.limits, self.predicates = tuple(map(Limit, budgets)), tuple(predicates)
        self._known: dict[Arch, bool] = {}

    def __bool__(self) -> bool:
        return bool(self.limits or self.predicates)

    def passes(self, arch: Arch) -> bool:
        if not self:
            return True
        passed = self._known.get(arch)
        if passed is None:
            passed = all(limit.holds(arch) for limit in self.limits) and all(ask(arch) for ask in self.predicates)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[arch] = passed  # which another thread may clear at once
        return passed


def checked_budget(given: Any, rule: str) -> Budget:
    """Return what is a budget; a TypeError begins with the rule and says how to make one of anything else."""
    if isinstance(given, Budget):
        return given
    if callable(given):
        made = f"Budget({getattr(given, '__name__', type(given).__name__).lower().strip('<>')}, at_most=...)"
    else:
        bound = repr(given) if isinstance(given, int | float | str) else "..."
        made = f'Budget(cost, at_most={bound}), with a cost such as counted("macs", make, space, example)'
    raise TypeError(f"{rule}, but got {given!r}; write {made}")


def bounds_of(budget: Budget) -> str:
    """Return what the bounds are called that a budget has."""
    pairs = zip(budget.names, (budget.at_least, budget.at_most), strict=True)
    return " or ".join(name for name, bound in pairs if bound is not None)


def name_of(predicate: ArchPredicate) -> str:
    return f"the predicate {getattr(predicate, '__name__', repr(predicate))}"
