"""Costs of a space's networks, counted on networks that its builder makes instead of written as formulas."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import nn

from nasx._arguments import canonical_in
from nasx._cases import Case, cases_of, shared_space
from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost
from nasx.measure.count import Call, activations_by_module, count_peak_memory, macs_by_module, params_by_module
from nasx.nn.builders import check_builder
from nasx.nn.parts import Parts, module_lists, repeat_names
from nasx.nn.probes import MOST, repeated_parts
from nasx.nn.skeleton import Make, NeedsWeights, build_skeleton, call_builder, refuse_shared
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
_CHECKED = 16  # networks drawn that the sum of parts is compared with
_ALL = 256  # networks of a space that are all compared, where they have few modules
_MODULES = 10_000  # of all networks compared: seconds
_FEW = 200  # passes that are made to count each repeat anew beside every count of the others
_SHOWN = 2  # times that an option is counted where it is taken for independent of the counts of other repeats

PartKey = tuple[str, int, Arch, Arch]
"""A part's name, its number (0 where that does not matter), the shared choices that matter to it, and its own."""


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
    own_counts: frozenset[str] = field(default=frozenset(), repr=False)
    """Counts, by their full names, that matter to the parts of their own repeat alone."""
    unit: str = ""
    """What is counted, in words, such as `MACs`."""

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the cost outside the repeated parts."""
        return _found(self.fixed_counts, Arch(shared), shared)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the cost of one part."""
        key = *self.place(name, index, shared), Arch(choices)
        return _found(self.part_counts, key, {**shared, **choices})

    def place(self, name: str, index: int, shared: Mapping[str, Value]) -> tuple[str, int, Arch]:
        """Return what the cost of a part goes by beside its own choices, as in `part_counts`."""
        others = self.own_counts - {f"{name}.count"}
        seen = {entry: value for entry, value in shared.items() if entry not in others}
        return name, index if self.by_index else 0, Arch(seen)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON; `load` reads it."""
        fixed = [{"shared": dict(shared), "count": count} for shared, count in self.fixed_counts.items()]
        parts = [
            {"name": name, "index": index, "shared": dict(shared), "choices": dict(choices), "count": count}
            for (name, index, shared, choices), count in self.part_counts.items()
        ]
        settings = {"unit": self.unit, "by_index": self.by_index, "own_counts": sorted(self.own_counts)}
        write_json(path, {"counted": _FORMAT, **settings, "fixed": fixed, "parts": parts})

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
                frozenset(map(str, document["own_counts"])),
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

    Networks run on `meta`, which computes nothing, or, where they cannot, on the CPU with weights drawn by one seed: at
    least one for every combination of the choices outside repeated parts, their counts included. The sum is compared
    with each of them, and with all others of a space of up to 256 networks where these have few modules, else with 16
    drawn; a ValueError names the first that disproves it. Where a table would take more than 2,000 passes, a ValueError
    says so before the first; `additive=False` then gives a `CachedCost`, which filters. Memory does not add up and is
    always one.
    """
    if kind not in UNITS:
        raise ValueError(f"a counted cost is one of {', '.join(UNITS)}, but got {kind!r}")
    check_builder(make, space, f"counted({kind!r}, make, space, example)")
    if example is None and kind != "params":
        raise ValueError(f"{UNITS[kind]} need an example of the network's inputs, but got None")
    counter = _Counter(kind, make, None if example is None else Call.of(example))
    if kind == "peak_memory" or not additive:
        return CachedCost(UNITS[kind], partial(_total_in, space.space, counter))
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
                if self.kind == "params":
                    return count(network, Call())
                assert self.call is not None
                with _without_values(network):
                    return count(network, self.call.to("meta"))
            except (NotImplementedError, RuntimeError, TypeError, NeedsWeights):
                if self.kind == "params":
                    raise
                self.on_meta = False  # its forward pass asks for values
        assert self.call is not None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # where weights decide what runs, counts are the same each time
            network = call_builder(self.make, arch)
            refuse_shared(network)
            return count(network.cpu(), self.call.to("cpu"))

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


@contextmanager
def _without_values(network: nn.Module) -> Iterator[None]:
    """Put all tensors of a skeleton on `meta` for a while; modules from outside, which must stay, may be in it."""
    modules = list(network.modules())
    holders: list[dict[str, Any]] = [of for module in modules for of in (module._parameters, module._buffers)]
    held = [(holder, leaf, tensor) for holder in holders for leaf, tensor in holder.items()]
    recurrent = [(module, module._flat_weights) for module in modules if isinstance(module, nn.RNNBase)]
    on_meta = {id(t): t if t.is_meta else torch.empty_like(t, device="meta") for _, _, t in held if t is not None}
    try:
        for holder, leaf, tensor in held:
            holder[leaf] = None if tensor is None else on_meta[id(tensor)]
        for module, weights in recurrent:
            module._flat_weights = [on_meta.get(id(weight), weight) for weight in weights]
        yield
    finally:
        for holder, leaf, tensor in held:
            holder[leaf] = tensor
        for module, weights in recurrent:
            module._flat_weights = weights


def _total_in(space: Space, counter: _Counter, arch: Arch) -> int:
    return counter.total(canonical_in(space, arch))


def _table(counter: _Counter, space: Space, given: dict[str, str]) -> CountedCost:
    lists = module_lists(counter.make, space, given)
    if missing := [name for name in repeat_names(space) if name not in lists]:
        raise ValueError(
            f"the repeat {missing[0]!r} is no module list of the network, so its parts cannot be counted one by one; "
            f"say which it is, such as parts={{{missing[0]!r}: 'encoder.layer'}}, or count with additive=False"
        )
    if (shared := shared_space(space).size) > MOST:
        raise _too_many(shared)
    if (options := max((part.size for part in repeated_parts(space)), default=0)) > MOST * 100:
        raise _too_many(options)
    cases = list(cases_of(space))
    wrong, reason = None, "a part's cost may depend on another part"
    for cost in _simplest_first(cases, UNITS[counter.kind]):
        plan = list(islice(_networks(cases, cost), MOST + 1)) if (passes := _least_passes(cases, cost)) <= MOST else []
        if (passes := max(passes, len(plan))) > MOST:
            if wrong is None:
                raise _too_many(passes)
            reason = f"a table that tells more parts apart would take {passes:,} passes, but at most {MOST:,} are made"
            break
        cost, wrong = _count_parts(counter, plan, lists, cost)
        wrong = wrong or _disproof(cost, counter, space, {case.decode(filling) for case, filling in plan})
        if wrong is None:
            return cost
    assert wrong is not None
    arch, summed, found = wrong
    raise ValueError(
        f"{UNITS[counter.kind]} do not add up over the repeated parts: those of {dict(arch)} are {found:,}, but the "
        f"sum is {summed:,}; {reason}. Count with additive=False, which can filter"
    )


def _simplest_first(cases: Sequence[Case], unit: str) -> Iterator[CountedCost]:
    """Yield empty tables that tell more and more parts apart, so that the first that holds takes the fewest passes.

    Parts of equal choices mostly cost the same at every place, and beside any number of parts of another repeat.
    """
    repeats = {slot.name for case in cases for slot in case.slots}
    counts = frozenset(f"{name}.count" for name in repeats if len(repeats) > 1).intersection(*(c.shared for c in cases))
    all_matter = CountedCost({}, {}, unit=unit)
    if counts and _least_passes(cases, all_matter) > _FEW:
        yield CountedCost({}, {}, own_counts=counts, unit=unit)
        yield CountedCost({}, {}, by_index=True, own_counts=counts, unit=unit)
    yield all_matter
    yield CountedCost({}, {}, by_index=True, unit=unit)


def _least_passes(cases: Sequence[Case], cost: CountedCost) -> int:
    """Return a number of passes below which not every part is counted."""
    passes: dict[tuple[str, int], dict[Arch, int]] = defaultdict(dict)
    for case in cases:
        options: dict[tuple[str, int, Arch], list[int]] = defaultdict(list)
        for slot in case.slots:
            options[cost.place(slot.name, slot.index, case.shared)].append(len(slot.options))
        for (name, index, seen), sizes in options.items():
            passes[name, index][seen] = -(-max(sizes) // len(sizes))
    return max(len(cases), *(sum(of_place.values()) for of_place in passes.values()), 0)


def _networks(cases: Sequence[Case], cost: CountedCost) -> Iterator[tuple[Case, list[int]]]:
    """Yield cases with options of their slots, which between them show every case, and every part that is told apart.

    What remains open is drawn, so that the passes also compare parts that a table takes for equal.
    """
    rng = np.random.default_rng(0)
    times = _SHOWN if cost.own_counts else 1
    places = [[cost.place(slot.name, slot.index, case.shared) for slot in case.slots] for case in cases]
    waiting: dict[tuple[str, int, Arch], dict[tuple[int, Arch], None]] = {}
    for case, of_case in zip(cases, places, strict=True):
        for slot, place in zip(case.slots, of_case, strict=True):
            shows = ((time, option) for time in range(times) for option in slot.options)
            waiting.setdefault(place, {}).update(dict.fromkeys(shows))

    def waits(number: int) -> bool:
        return any(waiting[place] for place in places[number])

    def filled(number: int) -> tuple[Case, list[int]]:
        shown = zip(cases[number].slots, places[number], strict=True)
        return cases[number], [_next(waiting[place], slot.options, rng) for slot, place in shown]

    for number in rng.permutation(len(cases)).tolist():  # so that what disproves a table is met early
        yield filled(number)
        while not cost.own_counts and waits(number):
            yield filled(number)
    while left := [number for number in range(len(cases)) if waits(number)]:
        yield from (filled(number) for number in left if waits(number))


def _next(waiting: dict[tuple[int, Arch], None], options: Sequence[Arch], rng: np.random.Generator) -> int:
    """Return the number of the first option that waits, which waits no longer, or of any."""
    for show in waiting:
        if show[1] in options:
            del waiting[show]
            return options.index(show[1])
    return int(rng.integers(len(options)))


Disproof = tuple[Arch, int, int]
"""An architecture whose cost is not the sum, with the sum and the cost."""


def _count_parts(
    counter: _Counter, plan: Sequence[tuple[Case, list[int]]], lists: Mapping[str, str], cost: CountedCost
) -> tuple[CountedCost, Disproof | None]:
    """Return the table of what some networks cost, or the first of them that disproves it."""
    fixed: dict[Arch, int] = {}
    found: dict[PartKey, int] = {}
    for case, filling in plan:
        arch = case.decode(filling)
        counts = counter.by_module(arch)
        of_parts = summed = 0
        for slot, option in zip(case.slots, filling, strict=True):
            count = counts[f"{lists[slot.name]}.{slot.index}"]
            key = *cost.place(slot.name, slot.index, case.shared), slot.options[option]
            of_parts, summed = of_parts + count, summed + found.setdefault(key, count)
        summed += fixed.setdefault(case.shared, counts[""] - of_parts)
        if summed != counts[""]:
            return cost, (arch, summed, counts[""])
    return replace(cost, fixed_counts=fixed, part_counts=found), None


def _disproof(cost: CountedCost, counter: _Counter, space: Space, known: Set[Arch]) -> Disproof | None:
    """Compare the sum with all networks of a small space, or with some of a large one; `known` have been compared."""
    for arch in space if _is_small(counter, space) else space.sample(0, _CHECKED):
        if arch not in known and (summed := cost(arch)) != (found := counter.total(arch)):
            return arch, summed, found
    return None


def _is_small(counter: _Counter, space: Space) -> bool:
    if space.size <= _CHECKED or space.size > _ALL or not counter.on_meta:
        return space.size <= _CHECKED
    modules = max(sum(1 for _ in build_skeleton(counter.make, space[at]).modules()) for at in (0, space.size - 1))
    return space.size * modules <= _MODULES


def _too_many(passes: int) -> ValueError:
    return ValueError(
        f"a table of this cost would take {passes:,} passes or more, but at most {MOST:,} are made, and each "
        "combination of the choices outside repeated parts, their counts included, takes one: offer fewer of them, put "
        "choices that add up into a repeat, or count with additive=False, which can filter"
    )


def _found(counts: Mapping[Any, int], key: Any, choices: Mapping[str, Value]) -> int:
    if key not in counts:
        raise ValueError(f"no network of the counted space has {dict(choices)}; count its own space")
    return counts[key]
