"""Costs of a space's networks, counted on networks that its builder makes instead of written as formulas."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from nasx._cases import Slot, cases_of, shared_space
from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost
from nasx.measure.count import Call, activations_by_module, count_peak_memory, macs_by_module, params_by_module
from nasx.nn.parts import Parts, module_lists, repeat_names
from nasx.nn.probes import MOST, repeated_parts
from nasx.nn.skeleton import Make, build_skeleton, call_builder, check_builder
from nasx.run.files import write_json
from nasx.space import ArchSet, Space

Kind = Literal["macs", "params", "activations", "peak_memory"]

UNITS: Mapping[str, str] = {
    "macs": "MACs",
    "params": "parameters",
    "activations": "elements written",
    "peak_memory": "bytes",
}
_FORMAT = 1
_CHECKED = 16  # networks that the sum of parts is compared with

PartKey = tuple[str, int, Arch, Arch]
"""A part's name, its number (0 where that does not matter), the shared choices, and its own."""


@dataclass(frozen=True)
class CountedCost(AdditiveCost):
    """A cost as a table: what stands around the repeated parts, and every part that the space has.

    `counted` makes one. An architecture of another space is a ValueError.
    """

    fixed_counts: Mapping[Arch, int] = field(repr=False)
    """The cost outside the repeated parts, by the shared choices."""

    part_counts: Mapping[PartKey, int] = field(repr=False)
    """The cost of a repeated part, by its name, its number, the shared choices and its own."""

    by_index: bool = False
    """Whether parts of equal choices cost different amounts at different places."""
    unit: str = ""
    """What is counted, in words, such as `MACs`."""

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the cost outside the repeated parts."""
        return _found(self.fixed_counts, Arch(shared), shared)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the cost of one part."""
        key = name, index if self.by_index else 0, Arch(shared), Arch(choices)
        return _found(self.part_counts, key, {**shared, **choices})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON; `load` reads it."""
        fixed = [{"shared": dict(shared), "count": count} for shared, count in self.fixed_counts.items()]
        parts = [
            {"name": name, "index": index, "shared": dict(shared), "choices": dict(choices), "count": count}
            for (name, index, shared, choices), count in self.part_counts.items()
        ]
        write_json(
            path, {"counted": _FORMAT, "unit": self.unit, "by_index": self.by_index, "fixed": fixed, "parts": parts}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CountedCost":
        """Read what `save` wrote; a ValueError says what else was found."""
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("counted") != _FORMAT:
            raise ValueError(f"{os.fspath(path)} holds no counted cost of format {_FORMAT}")
        try:
            return cls(
                {Arch(row["shared"]): int(row["count"]) for row in document["fixed"]},
                {
                    (row["name"], int(row["index"]), Arch(row["shared"]), Arch(row["choices"])): int(row["count"])
                    for row in document["parts"]
                },
                bool(document["by_index"]),
                str(document["unit"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} holds no counted cost: {error!r}") from error


@dataclass(frozen=True)
class CachedCost:
    """A cost that is counted for each architecture that is asked for, once; it can filter, but not count a space."""

    unit: str
    """What is counted, in words, such as `bytes`."""

    count: Callable[[Arch], int] = field(repr=False)
    """Returns an architecture's cost."""

    known: dict[Arch, int] = field(default_factory=dict, repr=False, compare=False)
    """The costs counted so far."""

    def __call__(self, arch: Arch) -> int:
        """Return the architecture's cost."""
        if arch not in self.known:
            self.known[arch] = self.count(arch)
        return self.known[arch]


@overload
def counted(
    kind: Literal["macs", "params", "activations"],
    make: Make,
    space: ArchSet,
    example: Any,
    *,
    parts: Parts | None = None,
    additive: Literal[True] = True,
) -> CountedCost: ...
@overload
def counted(
    kind: Kind, make: Make, space: ArchSet, example: Any, *, parts: Parts | None = None, additive: bool = True
) -> CountedCost | CachedCost: ...
def counted(
    kind: Kind,
    make: Make,
    space: ArchSet,
    example: Any,
    *,
    parts: Parts | None = None,
    additive: bool = True,
) -> CountedCost | CachedCost:
    """Return what every network of a space costs, counted: a `CountedCost` that adds up over its repeated parts.

    `kind` is `macs`, `params`, `activations` (elements written by modules with weights and by attention's products) or
    `peak_memory` (bytes of a forward pass). `example` is what a network is called with: a tensor, a tuple of positional
    arguments, or a `Call`; its batch is counted as given, and parameters need None. A repeat `block` of the space is
    the module list `block` or `blocks`, or what `parts` says: `{"block": "encoder.layer"}`.

    Networks run on `meta`, which computes nothing, or on the CPU where they cannot. The sum is compared with networks
    drawn from the space; a ValueError names the first that disproves it. Where a table would take more than 2,000
    passes, a ValueError says so; `additive=False` then gives a `CachedCost`, which filters. Memory does not add up and
    is always one.
    """
    if kind not in UNITS:
        raise ValueError(f"a counted cost is one of {', '.join(UNITS)}, but got {kind!r}")
    check_builder(make, space, f"counted({kind!r}, make, space, example)")
    if example is None and kind != "params":
        raise ValueError(f"{UNITS[kind]} need an example of the network's inputs, but got None")
    counter = _Counter(kind, make, None if example is None else Call.of(example))
    if kind == "peak_memory" or not additive:
        return CachedCost(UNITS[kind], counter.total)
    return _table(counter, space.space, dict(parts or {}))


@dataclass(slots=True)
class _Counter:
    """Counts one kind of cost by module."""

    kind: Kind
    make: Make
    call: Call | None
    on_meta: bool = True

    def total(self, arch: Arch) -> int:
        return self._run(arch, self._total)

    def by_module(self, arch: Arch) -> Counter[str]:
        return self._run(arch, self._by_module)

    def _run(self, arch: Arch, count: Callable[[nn.Module, Call], Any]) -> Any:
        if self.kind == "params" or self.on_meta:
            try:
                network = build_skeleton(self.make, arch)
                if self.kind != "params":
                    network = network.to("meta")
                return count(network, Call() if self.call is None else self.call.to("meta"))
            except (NotImplementedError, RuntimeError):
                if self.kind == "params":
                    raise
                self.on_meta = False  # its forward pass asks for values
        with torch.random.fork_rng(devices=[]):
            network = call_builder(self.make, arch).cpu()
        assert self.call is not None
        return count(network, self.call.to("cpu"))

    def _total(self, network: nn.Module, call: Call) -> int:
        if self.kind == "peak_memory":
            return count_peak_memory(network, *call.args, **call.kwargs)
        return self._by_module(network, call)[""]

    def _by_module(self, network: nn.Module, call: Call) -> Counter[str]:
        match self.kind:
            case "params":
                return params_by_module(network)
            case "macs":
                return macs_by_module(network, call)
            case _:
                return activations_by_module(network, call)


def _table(counter: _Counter, space: Space, given: dict[str, str]) -> CountedCost:
    lists = module_lists(build_skeleton(counter.make, space[0]), space, given)
    if missing := [name for name in repeat_names(space) if name not in lists]:
        raise ValueError(
            f"the repeat {missing[0]!r} is no module list of the network, so its parts cannot be counted one by one; "
            f"say which it is, such as parts={{{missing[0]!r}: 'encoder.layer'}}, or count with additive=False"
        )
    # parts of equal choices mostly cost the same at every place: then one pass counts several of them
    cost = _count_parts(counter, space, lists, by_index=False)
    if _disproof(cost, counter, space) is None:
        return cost
    cost = _count_parts(counter, space, lists, by_index=True)
    wrong = _disproof(cost, counter, space)
    if wrong is None:
        return cost
    arch, summed, found = wrong
    raise ValueError(
        f"{cost.unit} do not add up over the repeated parts: those of {dict(arch)} are {found:,}, but the sum is "
        f"{summed:,}; a part's cost may depend on another part. Count with additive=False, which can filter"
    )


def _count_parts(counter: _Counter, space: Space, lists: Mapping[str, str], by_index: bool) -> CountedCost:
    fixed: dict[Arch, int] = {}
    found: dict[PartKey, int] = {}
    passes = 0
    if (shared := shared_space(space).size) > MOST:
        raise _too_many(shared)
    if (options := max((part.size for part in repeated_parts(space)), default=0)) > MOST * 100:
        raise _too_many(options)
    for case in cases_of(space):
        for filling in _fillings(case.slots, by_index):
            passes += 1
            if passes > MOST:
                raise _too_many(passes)
            counts = counter.by_module(case.decode(filling))
            of_parts = 0
            for slot, option in zip(case.slots, filling, strict=True):
                count = counts[f"{lists[slot.name]}.{slot.index}"]
                found[slot.name, slot.index if by_index else 0, case.shared, slot.options[option]] = count
                of_parts += count
            fixed[case.shared] = counts[""] - of_parts
    return CountedCost(fixed, found, by_index, UNITS[counter.kind])


def _fillings(slots: Sequence[Slot], by_index: bool) -> Iterator[list[int]]:
    """Yield options of all slots, one each, that between them show every option at each place, or at any."""
    waiting: dict[tuple[str, int], dict[Arch, None]] = {}
    for slot in slots:
        waiting.setdefault((slot.name, slot.index if by_index else 0), {}).update(dict.fromkeys(slot.options))
    places = [{option: number for number, option in enumerate(slot.options)} for slot in slots]
    first = True
    while first or any(waiting.values()):
        first, filling = False, []
        for slot, numbers in zip(slots, places, strict=True):
            queue = waiting[slot.name, slot.index if by_index else 0]
            chosen = next((option for option in queue if option in numbers), None)
            if chosen is not None:
                del queue[chosen]
            filling.append(0 if chosen is None else numbers[chosen])
        yield filling


def _disproof(cost: CountedCost, counter: _Counter, space: Space) -> tuple[Arch, int, int] | None:
    """Return the first architecture whose cost is not the sum, with the sum and the count."""
    drawn = space.sample(0, _CHECKED) if space.size > _CHECKED else space
    for arch in drawn:
        summed, found = cost(arch), counter.total(arch)
        if summed != found:
            return arch, summed, found
    return None


def _too_many(passes: int) -> ValueError:
    return ValueError(
        f"a table of this cost would take {passes:,} passes or more, but at most {MOST:,} are made; put choices that "
        "add up into a repeat, or count with additive=False, which can filter"
    )


def _found(counts: Mapping[Any, int], key: Any, choices: Mapping[str, Value]) -> int:
    if key not in counts:
        raise ValueError(f"no network of the counted space has {dict(choices)}; count its own space")
    return counts[key]
