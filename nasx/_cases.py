"""A space as sums of costs: each assignment of the shared choices leaves slots, one for every repeated part.

The first segment of a name that is a number marks a repeated part (`nasx.arch.split`). What stands outside the parts
is shared. A `Case` is one assignment of all shared choices; its slots hold the options of the parts that it has, with
their costs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost
from nasx.space import Choice, Repeat, Space
from nasx.sums import Ints

__all__ = ["Case", "Slot", "cases_of", "costs_of", "parts_of", "shared_space"]

_MAX_CASES = 100_000
_MAX_OPTIONS = 1_000_000
_OR_FILTER = "or give the cost as a plain function, which then filters draws"
_FEW_OPTIONS = 50
"""As few are listed faster than it is found out whether another part has the same."""


@dataclass(frozen=True)
class Slot:
    """A repeated part of a case: the architectures that it can take, with the part's prefix stripped."""

    name: str
    index: int
    options: list[Arch]
    _fragments: dict[int, Arch] = field(default_factory=dict)

    def fragment(self, option: int) -> Arch:
        """Return an option's entries under their full names."""
        if option not in self._fragments:
            prefix = f"{self.name}.{self.index}"
            entries = self.options[option].items()
            self._fragments[option] = Arch({f"{prefix}.{name}": value for name, value in entries})
        return self._fragments[option]


@dataclass(frozen=True)
class Case:
    """One assignment of the shared choices, and the slots that it leaves."""

    shared: Arch
    slots: list[Slot]
    layout: list[dict[str, Value] | int]
    """Shared entries and slot numbers, in the space's order."""

    def decode(self, options: Sequence[int] | Ints) -> Arch:
        """Return the architecture that has these options, one a slot."""
        items = self.layout
        return Arch.joined(*(self.slots[i].fragment(int(options[i])) if isinstance(i, int) else i for i in items))


def cases_of(space: Space) -> Iterator[Case]:
    """Yield the cases of a space; a ValueError says where it has too many, or a part too many options, for tables."""
    outline = shared_space(space)
    if outline.size > _MAX_CASES:
        raise ValueError(
            f"the choices outside repeated parts have {outline.size:,} combinations, too many for a table "
            f"(at most {_MAX_CASES:,}); put choices that add up into a repeat, {_OR_FILTER}"
        )
    enumerated: dict[str, list[Arch]] = {}  # by JSON: equal spaces may still write 4 and 4.0
    for shared in outline:
        layout: list[dict[str, Value] | int] = []
        slots: list[Slot] = []
        for name, index, part in _outline(space, "", shared, layout):
            if part.size > _MAX_OPTIONS:
                raise ValueError(
                    f"a part of {name!r} has {part.size:,} options, too many for a table (at most {_MAX_OPTIONS:,}); "
                    f"offer fewer, {_OR_FILTER}"
                )
            if part.size <= _FEW_OPTIONS:
                options = list(part)
            else:
                key = part.to_json()
                options = enumerated[key] = enumerated.get(key) or list(part)
            slots.append(Slot(name, index, options))
        yield Case(shared, slots, layout)


def costs_of(case: Case, cost: AdditiveCost) -> tuple[int, list[Ints]]:
    """Return the fixed cost of a case, and the costs of each slot's options.

    A TypeError says that a cost gives something else than whole numbers of at most 63 bits.
    """
    slots = [
        _integers([cost.part(slot.name, slot.index, case.shared, choices) for choices in slot.options], cost)
        for slot in case.slots
    ]
    return int(_integers([cost.fixed(case.shared)], cost)[0]), slots


def shared_space(space: Space) -> Space:
    """Return the space of the shared choices: all that is outside of repeated parts, their counts included."""

    def bare(node: Choice | Space | Repeat) -> Choice | Space | Repeat:
        match node:
            case Space():
                return shared_space(node)
            case Repeat():
                return Repeat((Space(),) * len(node.parts), node.count)
            case Choice():
                return Choice(tuple((value, shared_space(inner)) for value, inner in node.options))

    return Space(**{key: bare(node) for key, node in space.nodes.items()})


def parts_of(space: Space, shared: Mapping[str, Value]) -> dict[tuple[str, int], Space]:
    """Return the repeated parts that an assignment of the shared choices leaves, by (name, index)."""
    return {(name, index): part for name, index, part in _outline(space, "", shared, [])}


def _outline(
    space: Space, prefix: str, shared: Mapping[str, Value], layout: list[dict[str, Value] | int]
) -> Iterator[tuple[str, int, Space]]:
    """Yield the parts that an assignment of the shared choices leaves, and write the order of entries into `layout`."""
    for key, node in space.nodes.items():
        name = prefix + key
        match node:
            case Space():
                yield from _outline(node, f"{name}.", shared, layout)
            case Choice():
                layout.append({name: shared[name]})
                at = node.position(shared[name])
                assert at is not None
                yield from _outline(node.options[at][1], prefix, shared, layout)
            case Repeat():
                count = node.count
                if isinstance(count, Choice):
                    layout.append({f"{name}.count": shared[f"{name}.count"]})
                    count = int(shared[f"{name}.count"])
                for i in range(count):
                    layout.append(sum(isinstance(entry, int) for entry in layout))
                    yield name, i, node.parts[i]


def _integers(costs: Sequence[int], cost: AdditiveCost) -> Ints:
    array = np.asarray(costs)
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        raise TypeError(
            f"the costs of an AdditiveCost must be whole numbers of at most 63 bits, but {cost!r} gave {array.dtype}; "
            f"round them to a finer unit, {_OR_FILTER}"
        )
    return array.astype(np.int64)
