"""Random spaces and costs, and what they mean, written out once more as plainly as possible.

The functions here read only the public structure of a space (`Space.nodes`, `Choice.options`, `Repeat.parts` and
`counts`) and know nothing of ranks, tables or narrowed spaces.
"""

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from nasx import Space, one_of, repeat
from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost
from nasx.space import Choice, Repeat

_VALUES: tuple[Value, ...] = (0, 1, 2, 3, 4.0, 0.5, -1, True, False, "none", "relu", "4")


@st.composite
def spaces(draw: st.DrawFn, max_size: int = 120, min_size: int = 1) -> Space:
    """Draw a nested space of at most `max_size` architectures: sums, powers, products and plain values."""
    space = draw(_products(("a", "b", "c", "d"), max_size, 3))
    if space.size < min_size:
        return Space(**space.nodes, more=one_of(*range(min_size)))
    return space


@st.composite
def _products(draw: st.DrawFn, keys: tuple[str, ...], room: int, depth: int, least: int = 0) -> Space:
    nodes: dict[str, Any] = {}
    for key in keys[: draw(st.integers(least, len(keys)))]:
        kinds = ["value", "choice"] + (["branches", "nested", "repeat", "repeat"] if depth else [])
        kind = draw(st.sampled_from(kinds))
        node: Any
        if kind == "value":
            node = draw(st.sampled_from(_VALUES))
        elif kind == "nested":
            node = draw(_products(("a", "b"), room, depth - 1))
        elif kind == "repeat":
            node = draw(_repeats(room, depth - 1))
        else:
            node = draw(_choices(key, room, depth - 1 if kind == "branches" else 0))
        if not isinstance(node, Space | Choice | Repeat):
            node = one_of(node)
        if node.size <= room:  # the room left is what keeps brute force quick
            nodes[key] = node
            room //= node.size
    return Space(**nodes) if nodes or not least else Space(**{keys[0]: 1})


@st.composite
def _choices(draw: st.DrawFn, key: str, room: int, depth: int) -> Choice:
    values = draw(st.lists(st.sampled_from(_VALUES), min_size=1, max_size=max(1, min(4, room)), unique=True))
    if not depth:
        return one_of(*values)
    opened = st.none() | _products((f"{key}x", f"{key}y"), max(1, room // len(values)), depth)
    return one_of({value: draw(opened) for value in values})


@st.composite
def _repeats(draw: st.DrawFn, room: int, depth: int) -> Repeat:
    part = draw(_products(("a", "b"), max(1, min(12, room)), depth, 1).filter(lambda s: bool(enumerated(s)[0])))
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True))
    if len(counts) == 1 and draw(st.booleans()):
        return repeat(part, counts[0])
    return repeat(part, one_of(*counts))


def enumerated(space: Space, prefix: str = "") -> list[dict[str, Value]]:
    """Return every architecture of a space in the canonical order: first name slowest, options as they stand."""
    found: list[dict[str, Value]] = [{}]
    for key, node in space.nodes.items():
        found = [{**before, **entries} for before in found for entries in _entries(node, prefix, key)]
    return found


def _entries(node: Choice | Space | Repeat, prefix: str, key: str) -> Iterator[dict[str, Value]]:
    match node:
        case Space():
            yield from enumerated(node, f"{prefix}{key}.")
        case Choice():
            for value, opened in node.options:
                yield from ({prefix + key: value, **entries} for entries in enumerated(opened, prefix))
        case Repeat():
            for count in node.counts:
                named: dict[str, Value] = {f"{prefix}{key}.count": count} if isinstance(node.count, Choice) else {}
                parts = [enumerated(part, f"{prefix}{key}.{i}.") for i, part in enumerate(node.parts[:count])]
                for row in itertools.product(*parts):
                    yield {**named, **{name: value for entries in row for name, value in entries.items()}}


def differing(space: Space, first: Mapping[str, Value], second: Mapping[str, Value], prefix: str = "") -> set[str]:
    """Return the choices that two architectures both have and decide differently; what only one has is not named.

    Below options that differ nothing is compared: there the choices are others, whatever their names.
    """
    found: set[str] = set()
    for key, node in space.nodes.items():
        name = prefix + key
        match node:
            case Space():
                found |= differing(node, first, second, f"{name}.")
            case Choice():
                opened = dict(node.options)
                if first[name] != second[name]:
                    found.add(name)
                else:
                    found |= differing(opened[first[name]], first, second, prefix)
            case Repeat():
                counts = [int(arch.get(f"{name}.count", node.counts[0])) for arch in (first, second)]
                if counts[0] != counts[1]:
                    found.add(f"{name}.count")
                for i in range(min(counts)):
                    found |= differing(node.parts[i], first, second, f"{name}.{i}.")
    return found


def inherits(
    space: Space, child: Mapping[str, Value], parents: Sequence[Mapping[str, Value]], prefix: str = ""
) -> bool:
    """Whether a child has each choice from a parent, and what an option opens from a parent that took it too."""
    for key, node in space.nodes.items():
        name = prefix + key
        match node:
            case Space():
                below = inherits(node, child, parents, f"{name}.")
            case Choice():
                alike = [parent for parent in parents if parent[name] == child[name]]
                below = bool(alike) and inherits(dict(node.options)[child[name]], child, alike, prefix)
            case Repeat():
                counts = [int(arch.get(f"{name}.count", node.counts[0])) for arch in (child, *parents)]
                below = counts[0] in counts[1:] and all(
                    inherits(
                        node.parts[i],
                        child,
                        [p for p, c in zip(parents, counts[1:], strict=True) if c > i],
                        f"{name}.{i}.",
                    )
                    for i in range(counts[0])
                )
        if not below:
            return False
    return True


@dataclass(frozen=True)
class ToyCost(AdditiveCost):
    """An integer for each part, drawn from its name, index, choices and the shared ones, whatever they are."""

    seed: int = 0
    spread: int = 20
    step: int = 1
    unit = "toys"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return self._drawn("fixed", 0, shared)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return self._drawn(name, index, {**{f"shared {n}": v for n, v in shared.items()}, **choices})

    def _drawn(self, name: str, index: int, entries: Mapping[str, Value]) -> int:
        spelled = sorted((n, v if isinstance(v, str) else float(v)) for n, v in entries.items())
        return self.step * (zlib.crc32(repr((self.seed, name, index, spelled)).encode()) % self.spread)


def archs(space: Space) -> list[Arch]:
    """Return every architecture by brute force."""
    return [Arch(entries) for entries in enumerated(space)]
