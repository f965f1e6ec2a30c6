"""Search spaces as ordinary values: products (`Space`), sums (`one_of`) and powers (`repeat`) of choices.

Conditions are structure: an option may open a subspace whose names stand beside the choice. So every sample,
mutation and crossover is valid by construction, sizes are exact integers, and architecture <-> integer is a
bijection (mixed radix, the first name most significant).

Mutation and crossover are uniform draws from a *narrowed* space: the same space with some choices held. A budget
then only has to know how to draw uniformly from any space (see `nasx.feasible`).

A space is a tree of three kinds of node: `Space`, `Choice` and `Repeat`. What they do together goes through methods of
one signature, in which `name` is the node's own full dotted name, "" for the whole space.
"""

import json
import math
import operator
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, Self, overload

import numpy as np

from nasx._numbers import check_probabilities, checked_count, plain_scalar
from nasx.arch import Arch, Value, check_value, matches, pattern_of

if TYPE_CHECKING:
    from nasx.cost import Budget
    from nasx.feasible import Feasible

Rng = np.random.Generator | int
"""A numpy generator, or the seed of one."""

Probability = float | Mapping[str, float]
"""Mutation probability: one number, or a mapping from name pattern to number, of which the most specific wins."""

Predicate = Callable[[Value], bool]
"""Whether a choice may have a value."""

Rule = Callable[[str, "Choice"], Iterable[tuple[int, "Rule | None"]]]
"""Which options of a named choice stay, each with the rule for its subspace (None: all of it stays)."""


class EmptySet(ValueError):
    """No architecture is left of those asked for; the message says what there is."""


def as_generator(rng: Rng) -> np.random.Generator:
    """Return `rng` itself where it is a generator, or a new one for a seed."""
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)


def _random_below(rng: np.random.Generator, bound: int) -> int:
    """Draw an integer of any length uniformly from [0, bound)."""
    bits = bound.bit_length()
    while True:  # at least every second draw is below the bound
        drawn = int.from_bytes(rng.bytes((bits + 7) // 8), "little") >> (-bits % 8)
        if drawn < bound:
            return drawn


@dataclass(frozen=True, eq=False)
class Draws(Sequence[Arch]):
    """Architectures that were drawn but are decoded only when they are read; equal where all of these are."""

    drawn: int
    """Number of architectures."""

    decode: Callable[[int], Arch] = field(repr=False)
    """Returns the architecture at a place."""

    def __len__(self) -> int:
        if self.drawn > sys.maxsize:
            raise ValueError(
                f"{self.drawn:,} architectures are too many for a length; take a shorter slice, or draw some with "
                "space.sample(rng, n)"
            )
        return self.drawn

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Draws):
            return NotImplemented
        return self.drawn == other.drawn and all(map(operator.eq, self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    @overload
    def __getitem__(self, index: int) -> Arch: ...
    @overload
    def __getitem__(self, index: slice) -> "Draws": ...
    def __getitem__(self, index: int | slice) -> "Arch | Draws":
        if isinstance(index, slice):
            return _sliced(self, range(self.drawn)[index])
        return self.decode(range(self.drawn)[index])


def _sliced(archs: "Draws | Space", places: range) -> Draws:
    length = max(0, -((places.start - places.stop) // places.step))  # as `len`, which stops at 63 bits
    return Draws(length, partial(_entry, archs, places))


def _entry(archs: "Draws | Space", places: Sequence[int], at: int) -> Arch:
    return archs[places[at]]


class ArchSet(Protocol):
    """A set of architectures, as searchers and path samplers take it: a `Space`, or what its `within` returns."""

    @property
    def space(self) -> "Space":
        """The whole space, budgets and predicates aside."""

    @property
    def budgets(self) -> "tuple[Budget, ...]":
        """The budgets that every architecture meets; none for a whole space."""

    @property
    def predicates(self) -> tuple[Callable[[Arch], bool], ...]:
        """The predicates that hold for every architecture."""

    @property
    def size(self) -> int:
        """Number of architectures, exact; a ValueError where only `size_bounds` are known."""

    @property
    def size_bounds(self) -> tuple[int, int]:
        """Least and greatest possible number of architectures; equal where it is known exactly."""

    @property
    def acceptance(self) -> float:
        """Share of the draws so far that were inside; 1.0 before any, and where no draw is ever refused."""

    def with_fresh_counts(self) -> "ArchSet":
        """Return the same set with an `acceptance` of its own."""

    def pin(self, entries: "Mapping[str, Value | Predicate]") -> "ArchSet":
        """Keep the architectures in which every name that a pattern matches has the pattern's value."""

    def within(self, *budgets: "Budget") -> "Feasible":
        """Return the architectures that meet further budgets as well."""

    def where(self, predicate: Callable[[Arch], bool]) -> "Feasible":
        """Return the architectures for which a predicate holds."""

    def __contains__(self, arch: object) -> bool: ...

    def __iter__(self) -> Iterator[Arch]: ...

    @overload
    def sample(self, rng: Rng) -> Arch: ...
    @overload
    def sample(self, rng: Rng, n: int) -> Sequence[Arch]: ...

    def sample_per_choice(self, rng: Rng) -> Arch:
        """Draw each choice uniformly, one after the other."""

    def genes(self, arch: Mapping[str, Value]) -> tuple[str, ...]:
        """Return the names of an architecture's choices that have an alternative in the space."""

    def neighbours(self, arch: Mapping[str, Value]) -> Iterator[Arch]:
        """Yield every architecture of the set that differs in one gene."""

    def mutate(self, arch: Arch, rng: Rng, probability: Probability) -> Arch:
        """Draw a child in which some choices of an architecture are drawn again."""

    def crossover(self, first: Arch, second: Arch, rng: Rng) -> Arch:
        """Draw a child that has every choice from one of two parents."""

    def canonical(self, arch: Mapping[str, Value]) -> Arch:
        """Return the architecture in the space's order; a ValueError names the entry that does not fit."""


class _Node(ABC):
    """What a space is made of."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of architectures, exact."""

    @abstractmethod
    def _rank(self, name: str, entries: dict[str, Value]) -> int:
        """Take the node's entries out of an architecture's and return their rank in [0, size)."""

    @abstractmethod
    def _unrank(self, name: str, index: int, entries: dict[str, Value]) -> None:
        """Add the entries of a rank."""

    @abstractmethod
    def _draw(self, name: str, rng: np.random.Generator, entries: dict[str, Value]) -> None:
        """Add entries in which every choice is drawn uniformly."""

    @abstractmethod
    def _choices(self, name: str) -> Iterator[tuple[str, "Choice"]]:
        """Yield the choices with their names."""

    @abstractmethod
    def _narrow(self, name: str, rule: Rule) -> Self | None:
        """Return the node with the options that a rule keeps, or None where a choice keeps none."""

    @abstractmethod
    def _plain(self) -> dict[str, Any]:
        """Return the node as JSON values."""


@dataclass(frozen=True)
class Choice(_Node):
    """One of several values, each of which may open a subspace of its own."""

    options: tuple[tuple[Value, "Space"], ...]
    """Each value with the subspace that it opens, which may be empty."""

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError("one_of needs at least one option")
        seen: dict[Value, Value] = {}
        for value in self.values:
            if value in seen:
                raise ValueError(f"one_of's options must differ, but {seen[value]!r} equals {value!r}")
            seen[value] = value

    @property
    def values(self) -> tuple[Value, ...]:
        """The options without their subspaces."""
        return tuple(value for value, _ in self.options)

    @cached_property
    def size(self) -> int:
        """Number of architectures: the sum over the options' subspaces."""
        return sum(space.size for _, space in self.options)

    @cached_property
    def branches(self) -> bool:
        """Whether any option opens a subspace."""
        return any(space.nodes for _, space in self.options)

    def position(self, value: Value) -> int | None:
        """Return the place of the option equal to a value, or None."""
        return next((i for i, v in enumerate(self.values) if v == value), None)

    def _rank(self, name: str, entries: dict[str, Value]) -> int:
        if name not in entries:
            raise ValueError(f"the architecture has no entry {name!r}; it must be one of {_listed(self.values)}")
        value = entries.pop(name)
        at = self.position(value)
        if at is None:
            raise ValueError(f"{name} must be one of {_listed(self.values)}, but got {value!r}")
        before = sum(space.size for _, space in self.options[:at]) if self.branches else at
        opened = self.options[at][1]
        return before + (opened._rank(_above(name), entries) if opened.nodes else 0)

    def _unrank(self, name: str, index: int, entries: dict[str, Value]) -> None:
        if not self.branches:
            entries[name] = self.options[index][0]
            return
        for value, space in self.options:
            if index < space.size:
                entries[name] = value
                space._unrank(_above(name), index, entries)
                return
            index -= space.size
        raise AssertionError("index beyond the choice's size")

    def _draw(self, name: str, rng: np.random.Generator, entries: dict[str, Value]) -> None:
        value, space = self.options[rng.integers(len(self.options))]
        entries[name] = value
        if space.nodes:
            space._draw(_above(name), rng, entries)

    def _choices(self, name: str) -> Iterator[tuple[str, "Choice"]]:
        yield name, self
        for _, space in self.options:
            yield from space._choices(_above(name))

    def _narrow(self, name: str, rule: Rule) -> "Choice | None":
        options = []
        for i, inner in rule(name, self):
            value, space = self.options[i]
            kept = space if inner is None else space._narrow(_above(name), inner)
            if kept is not None:
                options.append((value, kept))
        return Choice(tuple(options)) if options else None

    def _plain(self) -> dict[str, Any]:
        if not self.branches:
            return {"one_of": list(self.values)}
        return {"one_of": [[value, space._plain()["space"]] for value, space in self.options]}


@dataclass(frozen=True)
class Repeat(_Node):
    """A power: parts in a row, as many as `count` says, which may itself be a choice (then named `<name>.count`)."""

    parts: tuple["Space", ...]
    count: int | Choice

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of parts that can be chosen."""
        return (self.count,) if isinstance(self.count, int) else tuple(int(v) for v in self.count.values)

    @cached_property
    def size(self) -> int:
        """Number of architectures: the sum over the counts of the products of the parts."""
        return sum(math.prod(part.size for part in self.parts[:count]) for count in self.counts)

    def _rank(self, name: str, entries: dict[str, Value]) -> int:
        count, rank = self.counts[0], 0
        if isinstance(self.count, Choice):
            at = self.count._rank(f"{name}.count", entries)
            count = self.counts[at]
            rank = sum(math.prod(part.size for part in self.parts[:c]) for c in self.counts[:at])
        within = 0
        for i, part in enumerate(self.parts[:count]):
            within = within * part.size + part._rank(f"{name}.{i}", entries)
        return rank + within

    def _unrank(self, name: str, index: int, entries: dict[str, Value]) -> None:
        count = self.counts[0]
        if isinstance(self.count, Choice):
            for count in self.counts:
                size = math.prod(part.size for part in self.parts[:count])
                if index < size:
                    break
                index -= size
            entries[f"{name}.count"] = count
        for i, (part, digit) in enumerate(_digits(self.parts[:count], index)):
            part._unrank(f"{name}.{i}", digit, entries)

    def _draw(self, name: str, rng: np.random.Generator, entries: dict[str, Value]) -> None:
        count = self.counts[rng.integers(len(self.counts))]
        if isinstance(self.count, Choice):
            entries[f"{name}.count"] = count
        for i, part in enumerate(self.parts[:count]):
            part._draw(f"{name}.{i}", rng, entries)

    def _choices(self, name: str) -> Iterator[tuple[str, "Choice"]]:
        if isinstance(self.count, Choice):
            yield f"{name}.count", self.count
        for i, part in enumerate(self.parts):
            yield from part._choices(f"{name}.{i}")

    def _narrow(self, name: str, rule: Rule) -> "Repeat | None":
        """Return the parts narrowed by a rule; counts that need an emptied part go with it."""
        count = self.count if isinstance(self.count, int) else self.count._narrow(f"{name}.count", rule)
        if count is None:
            return None
        most = max(Repeat((), count).counts)
        parts = []
        for i, part in enumerate(self.parts[:most]):
            kept = part._narrow(f"{name}.{i}", rule)
            if kept is None:
                break
            parts.append(kept)
        if isinstance(count, int):
            return Repeat(tuple(parts), count) if len(parts) == count else None
        options = tuple(option for option in count.options if int(option[0]) <= len(parts))
        most = max((int(value) for value, _ in options), default=0)
        return Repeat(tuple(parts[:most]), Choice(options)) if options else None

    def _plain(self) -> dict[str, Any]:
        count = self.count if isinstance(self.count, int) else self.count._plain()
        parts = [part._plain() for part in self.parts]
        return {"repeat": parts[0] if len(set(self.parts)) == 1 else parts, "count": count}


class Space(_Node):
    """A product of named choices, subspaces and repeats.

    Each of `nodes` is what `one_of` or `repeat` gives, another `Space`, or a plain value, which is a choice of one.
    Names with dots or stars, numbers as names, and a name that stands twice are a ValueError.

    Examples:
        >>> space = Space(width=one_of(64, 128), block=repeat(Space(kernel_size=one_of(3, 5, 7)), 4))
        >>> space.size
        162
    """

    nodes: dict[str, "Choice | Space | Repeat"]
    budgets: "tuple[Budget, ...]" = ()
    predicates: tuple[Callable[[Arch], bool], ...] = ()
    acceptance: float = 1.0

    def __init__(self, /, **nodes: Any) -> None:
        self.nodes = {}
        for key, node in nodes.items():
            if not key or key.isdigit() or any(c in key for c in ".*"):
                raise ValueError(f"a name in a space must be a word without dots or stars, but got {key!r}")
            if _is_collection(node):
                raise TypeError(
                    f"{key!r} must be one value or a choice, but got {node!r}; write {key}={_spelled(node)}"
                )
            self.nodes[key] = node if isinstance(node, Choice | Space | Repeat) else one_of(node)
        owner: dict[str, str] = {}
        for key, node in self.nodes.items():
            opened = {k for _, s in node.options for k in s.names} if isinstance(node, Choice) else set()
            for name in (key, *sorted(opened)):
                if name in owner:
                    raise ValueError(
                        f"the name {name!r} stands twice in one space: under {owner[name]!r} and under {key!r}"
                    )
                owner[name] = key

    @cached_property
    def names(self) -> frozenset[str]:
        """First segments of every name that an architecture of this space can have."""
        opened = (s.names for node in self.nodes.values() if isinstance(node, Choice) for _, s in node.options)
        return frozenset(self.nodes).union(*opened)

    @cached_property
    def size(self) -> int:
        """Number of architectures, exact."""
        return math.prod(node.size for node in self.nodes.values())

    @property
    def size_bounds(self) -> tuple[int, int]:
        """The size twice: it is known exactly."""
        return self.size, self.size

    @property
    def space(self) -> "Space":
        """The space itself."""
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and list(self.nodes.items()) == list(other.nodes.items())

    def __hash__(self) -> int:
        return hash(tuple(self.nodes.items()))

    def __repr__(self) -> str:
        return f"Space({', '.join(self.nodes)}; {self.size:,} architectures)"

    # Architecture <-> integer

    def index(self, arch: Mapping[str, Value]) -> int:
        """Return an architecture's rank in [0, size); a ValueError names the entry that does not fit."""
        entries = dict(arch)
        rank = self._rank("", entries)
        if entries:
            name = next(iter(entries))
            raise ValueError(f"the space has no entry {name!r} beside the others of this architecture")
        return rank

    @overload
    def __getitem__(self, index: int) -> Arch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Arch]: ...
    def __getitem__(self, index: int | slice) -> Arch | Sequence[Arch]:
        if isinstance(index, slice):
            return _sliced(self, range(self.size)[index])
        try:
            index = operator.index(index)
        except TypeError:
            raise TypeError(
                f"an index must be a whole number or a slice, but got {index!r}; the rank of an architecture is "
                "space.index(arch)"
            ) from None
        if not 0 <= index < self.size:
            raise IndexError(f"an index must be in [0, {self.size}), but got {index}")
        entries: dict[str, Value] = {}
        self._unrank("", index, entries)
        return Arch.joined(entries)

    def __iter__(self) -> Iterator[Arch]:
        index = 0
        while index < self.size:
            yield self[index]
            index += 1

    def __contains__(self, arch: object) -> bool:
        try:
            self.index(arch)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return False
        return True

    def canonical(self, arch: Mapping[str, Value]) -> Arch:
        """Return an architecture in the space's order and number types; a ValueError names what does not fit."""
        return self[self.index(arch)]

    # Parts

    def walk(self) -> Iterator[tuple[str, Choice]]:
        """Yield every choice by its full name, branches included: a name may come once per branch."""
        return self._choices("")

    def parts(self, name: str) -> tuple["Space", ...]:
        """Return the spaces of the repeated part `name`, as many as the largest count has."""
        node: Choice | Space | Repeat | None = self
        for segment in name.split("."):
            node = node.nodes.get(segment) if isinstance(node, Space) else None
        if not isinstance(node, Repeat):
            raise ValueError(f"{name!r} is no repeated part of this space; it has {_listed(self.nodes)}")
        return node.parts

    def genes(self, arch: Mapping[str, Value]) -> tuple[str, ...]:
        """Return the names of an architecture's choices that had an alternative."""
        arch = self.canonical(arch)
        names: list[str] = []

        def visit(name: str, choice: Choice) -> Iterable[tuple[int, Rule | None]]:
            if len(choice.options) > 1:
                names.append(name)
            return _keep(choice, arch[name], visit)

        self._narrow("", visit)
        return tuple(names)

    def pin(self, entries: Mapping[str, Value | Predicate]) -> "Space":
        """Keep the architectures in which every name that a pattern matches has the pattern's value.

        Instead of a value a pattern may have a predicate, which tells the values that may stay:
        `space.pin({"block.*.kernel_size": lambda size: size < 31})`. `*` is one segment. Branches that contradict an
        entry are removed; a name that an architecture does not have never excludes it; pinned names stay in the Arch.
        Raises ValueError for a pattern that matches no name, EmptySet for a value that no matching choice offers and
        for an empty result.
        """
        choices = list(self.walk())
        for pattern, wanted in entries.items():
            found = [choice for name, choice in choices if matches(pattern, name)]
            if not found:
                raise ValueError(f"{pattern!r} matches no name of this space; it has {_listed(name_patterns(choices))}")
            if not any(_fits(value, wanted) for choice in found for value in choice.values):
                offered = sorted({v for choice in found for v in choice.values}, key=str)
                said = "passes the predicate" if callable(wanted) else f"equals {wanted!r}"
                raise EmptySet(f"no value of {pattern!r} {said}; this space offers {_listed(offered)}")

        def pinned(name: str, choice: Choice) -> Iterable[tuple[int, Rule | None]]:
            wanted = [value for pattern, value in entries.items() if matches(pattern, name)]
            return [(i, pinned) for i, v in enumerate(choice.values) if all(_fits(v, w) for w in wanted)]

        space = self._narrow("", pinned)
        if space is None:
            raise EmptySet(f"no architecture of this space meets all of {dict(entries)!r} together")
        return space

    # Draws

    @overload
    def sample(self, rng: Rng) -> Arch: ...
    @overload
    def sample(self, rng: Rng, n: int) -> Sequence[Arch]: ...
    def sample(self, rng: Rng, n: int | None = None) -> Arch | Sequence[Arch]:
        """Draw one architecture, or `n` that decode on access, uniformly over all architectures."""
        generator, n = as_generator(rng), checked_count(n)
        if n is None:
            return self[_random_below(generator, self.size)]
        indices = [_random_below(generator, self.size) for _ in range(n)]
        return Draws(n, partial(_entry, self, indices))

    def sample_per_choice(self, rng: Rng) -> Arch:
        """Draw every choice uniformly, one after the other, as SPOS does.

        Where options open subspaces of different sizes this is not uniform over architectures.
        """
        entries: dict[str, Value] = {}
        self._draw("", as_generator(rng), entries)
        return Arch.joined(entries)

    def mutations(self, arch: Mapping[str, Value], genes: Iterable[str]) -> "Space":
        """Return the space of an architecture's children in which the given genes are free and all others held.

        A freed gene that takes another option takes any subspace of it.
        """
        arch, free = self.canonical(arch), set(genes)

        def rule(name: str, choice: Choice) -> Iterable[tuple[int, Rule | None]]:
            if name not in arch:  # a part beyond the architecture's own count
                return [(i, None) for i in range(len(choice.options))]
            at = choice.position(arch[name])
            if name in free:
                return [(i, rule if i == at else None) for i in range(len(choice.options))]
            return _keep(choice, arch[name], rule)

        return _narrowed(self, rule)

    def crossings(self, first: Mapping[str, Value], second: Mapping[str, Value]) -> "Space":
        """Return the space of two architectures' children: each gene from either, branches with their subtree."""
        first, second = self.canonical(first), self.canonical(second)

        def both(name: str, choice: Choice) -> Iterable[tuple[int, Rule | None]]:
            if name not in first or name not in second:  # parts that only the deeper parent has
                return _keep(choice, (first if name in first else second)[name], both)
            if first[name] == second[name]:
                return _keep(choice, first[name], both)
            return [
                *_keep(choice, first[name], _held(first) if choice.branches else both),
                *_keep(choice, second[name], _held(second) if choice.branches else both),
            ]

        return _narrowed(self, both)

    def mutate(self, arch: Mapping[str, Value], rng: Rng, probability: Probability = 0.1) -> Arch:
        """Draw a child in which each gene is drawn again with a probability, at least one of them.

        A mapping gives genes probabilities of their own: `{"block.*.*": 0.4, "embed_dim": 0.2}`. Of several patterns
        that match, the one with the fewest `*` wins, of those the alphabetically first. A ValueError names a gene that
        none matches, or a probability outside of 0..1.
        """
        generator = as_generator(rng)
        return self.mutations(arch, pick_genes(self.genes(arch), generator, probability)).sample(generator)

    def crossover(self, first: Mapping[str, Value], second: Mapping[str, Value], rng: Rng) -> Arch:
        """Draw a child that has each gene from either parent with equal chance."""
        return self.crossings(first, second).sample(rng)

    def neighbours(self, arch: Mapping[str, Value]) -> Iterator[Arch]:
        """Yield every architecture that differs in one gene (and in what the gene's new option opens)."""
        arch = self.canonical(arch)
        for gene in self.genes(arch):
            for other in self.mutations(arch, [gene]):
                if other.get(gene) != arch[gene]:
                    yield other

    def within(self, *budgets: "Budget") -> "Feasible":
        """Return the architectures inside every budget: counted exactly and drawn uniformly (see `nasx.feasible`)."""
        from nasx.feasible import Feasible  # the arrow points from feasible to space

        return Feasible(self, budgets)

    def where(self, predicate: Callable[[Arch], bool]) -> "Feasible":
        """Return the architectures for which a predicate holds; it filters draws (see `nasx.feasible`)."""
        return self.within().where(predicate)

    def with_fresh_counts(self) -> "Space":
        """Return the space itself: no draw from it is ever refused, so there is nothing to count."""
        return self

    # JSON

    def to_json(self) -> str:
        """Return the space as a JSON document that `from_json` reads back to an equal space."""
        return json.dumps(self._plain(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Space":
        """Read what `to_json` wrote; a ValueError says what does not fit."""
        try:
            space = _from_plain(json.loads(text))
        except TypeError as error:
            raise ValueError(str(error)) from None
        if not isinstance(space, Space):
            raise ValueError("the JSON document holds no space; give what `Space.to_json` returned")
        return space

    # What all nodes do

    def _rank(self, name: str, entries: dict[str, Value]) -> int:
        rank = 0
        for key, node in self.nodes.items():
            rank = rank * node.size + node._rank(_below(name, key), entries)
        return rank

    def _unrank(self, name: str, index: int, entries: dict[str, Value]) -> None:
        for key, (node, digit) in zip(self.nodes, _digits(self.nodes.values(), index), strict=True):
            node._unrank(_below(name, key), digit, entries)

    def _draw(self, name: str, rng: np.random.Generator, entries: dict[str, Value]) -> None:
        for key, node in self.nodes.items():
            node._draw(_below(name, key), rng, entries)

    def _choices(self, name: str) -> Iterator[tuple[str, Choice]]:
        for key, node in self.nodes.items():
            yield from node._choices(_below(name, key))

    def _narrow(self, name: str, rule: Rule) -> "Space | None":
        nodes: dict[str, Choice | Space | Repeat] = {}
        for key, node in self.nodes.items():
            kept = node._narrow(_below(name, key), rule)
            if kept is None:
                return None
            nodes[key] = kept
        return Space(**nodes)

    def _plain(self) -> dict[str, Any]:
        return {"space": {key: node._plain() for key, node in self.nodes.items()}}


_NOTHING = Space()


def one_of(*options: Any) -> Choice:
    """Return a choice between `options`: values, or the keys of one dict that map to the subspaces they open.

    A subspace's names stand beside the choice; None opens nothing. Values are strings, numbers or bools, all different,
    else a ValueError; another value, and an option that opens anything but a `Space`, is a TypeError. For anything
    else, such as a class or a tuple, use a name as the option, and look the name up in the builder.

    Examples:
        >>> one_of(3, 5, 7).size
        3
        >>> one_of("relu", "gelu").size  # {"relu": nn.ReLU, "gelu": nn.GELU}[arch["act"]] in the builder
        2
        >>> one_of({"none": None, "squeeze": Space(reduction=one_of(4, 8))}).size
        3
    """
    if len(options) == 1 and isinstance(options[0], Mapping):
        pairs = []
        for value, space in options[0].items():
            if not isinstance(space, Space | None):
                raise TypeError(
                    f"an option opens a Space or None, but {value!r} maps to {space!r}; give what it opens a name: "
                    f"one_of({{{value!r}: Space(size=...)}})"
                )
            pairs.append((_option(value), space or _NOTHING))
        return Choice(tuple(pairs))
    if len(options) == 1 and _is_collection(options[0]):
        raise TypeError(f"one_of takes its options one by one, but got {options[0]!r}; write {_spelled(options[0])}")
    return Choice(tuple((_option(option), _NOTHING) for option in options))


def _option(value: Any) -> Value:
    try:
        return check_value(value)
    except TypeError:
        pass
    if isinstance(value, Choice):
        rule, mend = f"a choice of {_listed(value.values)}", "write all options in one one_of"
    elif isinstance(value, Space | Repeat):
        rule = repr(value) if isinstance(value, Space) else "a repeat"
        mend = 'name the subspaces: one_of({"conv": Space(...), "none": None})'
    else:
        rule = repr(value)
        mend = (
            'give each option a name, such as one_of("relu", "gelu"), and look the name up in the builder: '
            '{"relu": nn.ReLU, "gelu": nn.GELU}[arch["act"]]'
        )
    raise TypeError(f"an option must be a number, a string or a bool, but got {rule}; {mend}")


def _is_collection(value: object) -> bool:
    """Return whether a value holds several, such as a list, a range or an array of one dimension and more."""
    if isinstance(value, str | bytes | type | Mapping) or getattr(value, "ndim", 1) == 0:
        return False
    return isinstance(value, Collection | Iterator)


def _spelled(values: Any) -> str:
    """Return how one_of is written for the values of a collection."""
    listed = list(values) if isinstance(values, Collection) else []
    if 0 < len(listed) <= 8 and all(isinstance(value, Value) for value in listed):
        return f"one_of({', '.join(map(repr, listed))})"
    return "one_of(*options), where `options` holds them"


def repeat(part: Space, count: int | Choice) -> Repeat:
    """Return a part repeated `count` times; a count that is a choice is named `<name>.count` in an Arch."""
    count = plain_scalar(count)
    if not isinstance(part, Space) or not part.nodes:
        raise TypeError(f"repeat needs a Space with at least one name, but got {part!r}")
    return Repeat((part,) * _most(count), count)


def _most(count: Any) -> int:
    """Return the largest number of parts of a repeat; a ValueError says that a count is none."""
    for value in count.values if isinstance(count, Choice) else (count,):
        if type(value) is not int or value < 0:
            raise ValueError(f"a count must be a whole number of parts, but got {value!r}")
    if isinstance(count, Choice) and count.branches:
        raise ValueError("the options of a count cannot open subspaces; put the choice beside the repeat")
    return max(Repeat((), count).counts)


def pick_genes(genes: Sequence[str], rng: np.random.Generator, probability: Probability) -> list[str]:
    """Draw which genes change: each with a probability in 0..1, and one at random where none was drawn."""
    check_probabilities(probability, "probability")
    if not genes:
        return []
    drawn = [gene for gene in genes if rng.random() < probability_of(gene, probability)]
    return drawn or [genes[int(rng.integers(len(genes)))]]


def probability_of(gene: str, probability: Probability) -> float:
    """Return a gene's probability; a ValueError says that no pattern fits it."""
    if not isinstance(probability, Mapping):
        return probability
    fitting = [pattern for pattern in probability if matches(pattern, gene)]
    if fitting:
        return probability[min(fitting, key=lambda pattern: (pattern.count("*"), pattern))]
    raise ValueError(f"no mutation_probability is given for the gene {gene!r}, only for {', '.join(probability)}")


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _above(name: str) -> str:
    """Return what the names that an option opens stand below: they are siblings of the choice."""
    return name.rpartition(".")[0]


def _digits(nodes: Iterable[Any], index: int) -> list[tuple[Any, int]]:
    """Return each node with its own rank, given the rank of all: mixed radix, the first most significant."""
    pairs = []
    for node in reversed([*nodes]):
        index, digit = divmod(index, node.size)
        pairs.append((node, digit))
    return pairs[::-1]


def _fits(value: Value, wanted: Value | Predicate) -> bool:
    return bool(wanted(value)) if callable(wanted) else value == wanted


def _keep(choice: Choice, value: Value, rule: Rule) -> list[tuple[int, Rule | None]]:
    at = choice.position(value)
    return [] if at is None else [(at, rule)]


def _held(arch: Mapping[str, Value]) -> Rule:
    def rule(name: str, choice: Choice) -> Iterable[tuple[int, Rule | None]]:
        return _keep(choice, arch[name], rule) if name in arch else []

    return rule


def _narrowed(space: Space, rule: Rule) -> Space:
    narrowed = space._narrow("", rule)
    assert narrowed is not None, "an architecture of the space always stays"
    return narrowed


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(v) for v in values)


def name_patterns(choices: Iterable[tuple[str, Choice]]) -> list[str]:
    """Return the names of choices (`Space.walk`), with `*` for the numbers of parts, each once."""
    return list(dict.fromkeys(pattern_of(name) for name, _ in choices))


def _from_plain(plain: Any) -> Choice | Space | Repeat:
    match plain:
        case {"space": dict(nodes), **rest} if not rest:
            return Space(**{key: _from_plain(inner) for key, inner in nodes.items()})
        case {"one_of": [[_, dict()], *_] as options, **rest} if not rest:
            return Choice(tuple(_opening(option) for option in options))
        case {"one_of": list(values), **rest} if not rest:
            return one_of(*values)
        case {"repeat": parts, "count": plain_count, **rest} if not rest:
            count: Any = _from_plain(plain_count) if isinstance(plain_count, dict) else plain_count
            most = _most(count)
            read = [_from_plain(p) for p in parts] if isinstance(parts, list) else [_from_plain(parts)] * most
            spaces = tuple(node for node in read if isinstance(node, Space) and node.nodes)
            if len(spaces) != most:
                raise ValueError(
                    f"a repeat of up to {most} parts must list as many spaces with at least one name, but got {parts!r}"
                )
            return Repeat(spaces, count)
        case _:
            raise ValueError(f"a node of a space is a space, one_of or repeat, but got {plain!r}")


def _opening(option: Any) -> tuple[Value, Space]:
    match option:
        case [value, dict(nodes)]:
            return _option(value), Space(**{key: _from_plain(inner) for key, inner in nodes.items()})
        case _:
            raise ValueError(
                "where one option opens a space, each is a pair of a value and the names that it opens, but got "
                f"{option!r}; write [{json.dumps(option)}, {{}}] for one that opens nothing"
            )
