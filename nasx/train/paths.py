"""Which architectures a supernet trains on at each step: pure functions of (seed, step)."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Protocol

import numpy as np

from nasx._arguments import checked_seed
from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost, Budget
from nasx.feasible import Feasible, attainable
from nasx.space import ArchSet, Choice, Repeat, Space


class Paths(Protocol):
    """The architectures of a training step; gradients are averaged where there are several."""

    def __call__(self, step: int) -> tuple[Arch, ...]:
        """Return the architectures of a step."""


class UniformPaths:
    """One path a step: every choice of `space` drawn uniformly from (seed, step) (SPOS, section 3.3)."""

    def __init__(self, space: ArchSet, seed: int) -> None:
        self.space, self.seed = space, checked_seed(seed)

    def __call__(self, step: int) -> tuple[Arch, ...]:
        """Return the architecture of a step."""
        return (self.space.sample_per_choice(np.random.default_rng([self.seed, step])),)


class UniformArchPaths:
    """One path a step, uniform over architectures: an option that opens a larger subspace comes more often.

    It is drawn from `space` by (seed, step). It differs from `UniformPaths` where options open subspaces of different
    sizes, and inside a budget.
    """

    def __init__(self, space: ArchSet, seed: int) -> None:
        self.space, self.seed = space, checked_seed(seed)

    def __call__(self, step: int) -> tuple[Arch, ...]:
        """Return the architecture of a step."""
        return (self.space.sample(np.random.default_rng([self.seed, step])),)


class StratifiedPaths:
    """One path a step, uniform over the architectures of a cost bin; all bins that hold any get equal shares.

    What `space` attains of `cost`, from `at_least` to `at_most` where these are given, is cut into bins of equal
    width, and each round visits every bin once in an order of its own, drawn from (seed, round). So networks of rare
    costs train as often as common ones, against the bias of a supernet towards small networks, which converge faster
    (GLiT, section 4.3). Bins without an architecture are left out of `bins`; a ValueError says that all of them are.
    """

    def __init__(
        self,
        space: ArchSet,
        cost: AdditiveCost,
        bins: int,
        seed: int,
        *,
        at_least: int | None = None,
        at_most: int | None = None,
    ) -> None:
        space = _whole(space, "StratifiedPaths cuts its own budgets; pass the space, with at_least and at_most")
        if bins < 1:
            raise ValueError(f"`bins >= 1` must hold, but got {bins}; one bin is plain uniform sampling")
        reach = attainable(space, cost)
        low = reach.low if at_least is None else max(reach.low, at_least)
        high = reach.high if at_most is None else min(reach.high, at_most)
        edges = [low + (high - low + 1) * i // bins for i in range(bins + 1)]
        self.seed = checked_seed(seed)
        self.bins: list[Feasible] = []
        for first, beyond in pairwise(edges):
            if first < beyond:
                try:
                    self.bins.append(space.within(Budget(cost, first, beyond - 1)))
                except ValueError:  # no sum of parts falls into this bin
                    continue
        if not self.bins:
            raise ValueError(
                f"no architecture costs {low if at_least is None else at_least:,} to "
                f"{high if at_most is None else at_most:,} {cost.unit}; "
                f"attainable are {reach.low:,} to {reach.high:,} {cost.unit}: widen the bounds"
            )

    def __call__(self, step: int) -> tuple[Arch, ...]:
        """Return the architecture of a step."""
        turn, place = divmod(step, len(self.bins))
        order = np.random.default_rng([self.seed, turn, 1]).permutation(len(self.bins))
        return (self.bins[order[place]].sample(np.random.default_rng([self.seed, step])),)


class SandwichPaths:
    """A teacher, the cheapest architecture by `cost` and `random` random ones at every step (US-Nets, section 3.3).

    Draws from `space` depend on (seed, step). The teacher comes first, so that `train_supernet(..., distill=True)` lets
    the others learn from it; the random ones draw every choice uniformly. It must have every choice that any of them
    has, or they would be taught by a network that lacks parts of theirs. By default it is the costliest architecture of
    that kind: where all architectures have the same names the costliest of all, in a space of local and global blocks
    the costliest whose blocks have both. A ValueError names the choice of which no option has what the others have, or
    what a given `teacher` lacks.
    """

    def __init__(
        self, space: ArchSet, cost: AdditiveCost, seed: int, random: int = 2, teacher: Mapping[str, Value] | None = None
    ) -> None:
        space = _whole(space, "SandwichPaths trains the extremes of a whole space; pass the space without its budget")
        if random < 0:
            raise ValueError(f"`random >= 0` must hold, but got {random}; 0 trains teacher and cheapest alone")
        if teacher is None:
            self.teacher = attainable(_with_every_name(space, ""), cost).high_arch
        else:
            self.teacher = space.canonical(teacher)
            lacking = dict.fromkeys(name for name, _ in space.walk() if name not in self.teacher)
            if lacking:
                raise ValueError(
                    f"the teacher must have every choice that its students have, but it has no {_some(lacking)}; "
                    "leave `teacher` out for the costliest that has them all"
                )
        self.space, self.seed, self.random = space, checked_seed(seed), random
        self.smallest = attainable(space, cost).low_arch

    def __call__(self, step: int) -> tuple[Arch, ...]:
        """Return the architectures of a step: the teacher, the cheapest, then the random ones."""
        rng = np.random.default_rng([self.seed, step])
        drawn = (self.space.sample_per_choice(rng) for _ in range(self.random))
        return (self.teacher, self.smallest, *drawn)


class FairPaths:
    """As many paths a step as the largest choice has options, each option equally often (FairNAS, section 3.2).

    Every choice of `space` runs through its options in one random order after the other, drawn from (seed, round),
    apart from all other choices. So where all choices have m options, each step of m paths holds every option exactly
    once. A choice of fewer options wraps around inside a step: at any path, its options have been used equally often
    but for one, and exactly equally at the end of each round, after lcm(option counts) paths. Only spaces in which
    every architecture has the same names can be fair in this sense: a ValueError names the choice that opens subspaces,
    the repeat whose count varies, or the budget.
    """

    def __init__(self, space: ArchSet, seed: int) -> None:
        space = _whole(space, "a budget ties choices together, so no order is fair to each; pass the space without it")
        self.seed = checked_seed(seed)
        self.choices = dict(_flat(space, ""))
        self.paths_per_step = max((len(choice.options) for choice in self.choices.values()), default=1)

    def __call__(self, step: int) -> tuple[Arch, ...]:
        """Return the architectures of a step."""
        columns = [
            [choice.values[option] for option in self._options(number, len(choice.options), step)]
            for number, choice in enumerate(self.choices.values())
        ]
        paths = range(self.paths_per_step)
        return tuple(Arch({n: column[i] for n, column in zip(self.choices, columns, strict=True)}) for i in paths)

    def _options(self, number: int, count: int, step: int) -> list[int]:
        first = step * self.paths_per_step
        turns = range(first // count, (first + self.paths_per_step - 1) // count + 1)
        orders = [np.random.default_rng([self.seed, turn, number]).permutation(count).tolist() for turn in turns]
        return [orders[i // count - turns[0]][i % count] for i in range(first, first + self.paths_per_step)]


def _whole(space: ArchSet, mend: str) -> Space:
    if space.budgets or space.predicates:
        raise ValueError(f"the paths need a whole space, but got {space!r}: {mend}")
    return space.space


def _with_every_name(space: Space, prefix: str) -> Space:
    """Return the architectures that have every name that any architecture of the space has."""
    kept: dict[str, Space | Choice | Repeat] = {}
    for key, node in space.nodes.items():
        name = prefix + key
        match node:
            case Space():
                kept[key] = _with_every_name(node, f"{name}.")
            case Choice():
                names = [{inner for inner, _ in opened.walk()} for _, opened in node.options]
                every = set[str]().union(*names)
                widest = [option for option, own in zip(node.options, names, strict=True) if own == every]
                if not widest:
                    raise ValueError(
                        f"no architecture of this space can teach all others, for no option of {name!r} has all of "
                        f"{_some(sorted(every))}; choose other paths than the sandwich"
                    )
                kept[key] = Choice(tuple((value, _with_every_name(opened, prefix)) for value, opened in widest))
            case Repeat():
                most = max(node.counts)
                parts = tuple(_with_every_name(part, f"{name}.{i}.") for i, part in enumerate(node.parts[:most]))
                kept[key] = Repeat(parts, most if isinstance(node.count, int) else Choice(((most, Space()),)))
    return Space(**kept)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _flat(space: Space, prefix: str) -> Iterator[tuple[str, Choice]]:
    """Yield the choices that every architecture has; a choice of one option may open a subspace (a pinned space)."""
    for key, node in space.nodes.items():
        name = prefix + key
        match node:
            case Space():
                yield from _flat(node, f"{name}.")
            case Choice():
                if node.branches and len(node.options) > 1:
                    raise ValueError(
                        f"fair paths need choices that stand alone, but options of {name!r} open subspaces, whose "
                        "choices only some paths have; pin it or use UniformPaths"
                    )
                yield name, node
                yield from _flat(node.options[0][1], prefix)
            case Repeat():
                if len(node.counts) > 1:
                    raise ValueError(
                        f"fair paths need a fixed depth, but '{name}.count' is one of {node.counts}, so the last "
                        "parts would come less often; pin it or use UniformPaths"
                    )
                if isinstance(node.count, Choice):
                    yield f"{name}.count", node.count
                for i, part in enumerate(node.parts[: node.counts[0]]):
                    yield from _flat(part, f"{name}.{i}.")
