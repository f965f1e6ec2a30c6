"""Costs of a space's networks, counted on networks that its builder makes instead of written as formulas."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import nn

from nasx._arguments import canonical_in
from nasx._cases import Case, cases_of, shared_space
from nasx.arch import Arch
from nasx.measure.count import Call, activations_by_module, count_peak_memory, macs_by_module, params_by_module
from nasx.measure.tables import CachedCost, CountedCost, PartKey, Place
from nasx.nn.builders import check_builder
from nasx.nn.parts import Parts, every_module_list
from nasx.nn.probes import MOST, repeated_parts
from nasx.nn.skeleton import Make, NeedsWeights, build_skeleton, call_builder, refuse_shared
from nasx.space import ArchSet, Space

Kind = Literal["macs", "params", "activations", "peak_memory"]

UNITS: Mapping[str, str] = {
    "macs": "MACs",
    "params": "parameters",
    "activations": "elements written",
    "peak_memory": "bytes",
}
_CHECKED = 16  # networks drawn that the sum of parts is compared with
_ALL = 256  # networks of a space that are all compared, where they have few modules
_MODULES = 10_000  # of all networks compared: seconds
_FEW = 200  # passes that are made to count each repeat anew beside every count of the others
_SHOWN = 2  # times that an option is counted where it is taken for independent of the counts of other repeats


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
    says so before the first; `additive=False` then gives a `CachedCost`, which filters. Memory does not add up, so
    `peak_memory` always gives a `CachedCost`.
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
    """Return the first table that holds, of those that tell more and more parts apart."""
    otherwise = ", or count with additive=False"
    lists = every_module_list(counter.make, space, given, "counted one by one", otherwise)
    _refuse_huge(space)
    cases = list(cases_of(space))
    disproof: _Disproof | None = None
    for candidate in _simplest_first(cases, UNITS[counter.kind]):
        try:
            plan = _plan(cases, candidate)
        except _TooManyPasses as error:
            if disproof is None:
                raise _too_many(error.passes) from None
            raise disproof.error(
                f"a table that tells more parts apart would take {error.passes:,} passes, but at most {MOST:,} are made"
            ) from None
        filled, disproof = _count(counter, plan, lists, candidate)
        if disproof is None:
            disproof = _compare(filled, counter, space, {case.decode(options) for case, options in plan})
        if disproof is None:
            return filled
    assert disproof is not None
    raise disproof.error("a part's cost may depend on another part")


@dataclass(frozen=True, slots=True)
class _Disproof:
    """A network whose cost is not the sum over its parts."""

    arch: Arch
    summed: int
    found: int
    unit: str

    def error(self, reason: str) -> ValueError:
        return ValueError(
            f"{self.unit} do not add up over the repeated parts: those of {dict(self.arch)} are {self.found:,}, but "
            f"the sum is {self.summed:,}; {reason}. Count with additive=False, which can filter"
        )


class _TooManyPasses(Exception):
    """A table would take more than MOST passes: so many, or more."""

    def __init__(self, passes: int) -> None:
        super().__init__(passes)
        self.passes = passes


def _too_many(passes: int) -> ValueError:
    return ValueError(
        f"a table of this cost would take {passes:,} passes or more, but at most {MOST:,} are made, and each "
        "combination of the choices outside repeated parts, their counts included, takes one: offer fewer of them, put "
        "choices that add up into a repeat, or count with additive=False, which can filter"
    )


def _refuse_huge(space: Space) -> None:
    """Refuse a space whose cases or options are too many to be listed."""
    combinations = shared_space(space).size
    if combinations > MOST:
        raise _too_many(combinations)
    options = max((part.size for part in repeated_parts(space)), default=0)
    if options > MOST * 100:
        raise _too_many(options)


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


Pass = tuple[Case, list[int]]
"""A network that is counted: its case, and the number of the option that each slot has."""


def _plan(cases: Sequence[Case], table: CountedCost) -> list[Pass]:
    """Return the passes that fill a table."""
    least = _least_passes(cases, table)
    if least > MOST:
        raise _TooManyPasses(least)
    plan = list(islice(_Passes(cases, table), MOST + 1))
    if len(plan) > MOST:
        raise _TooManyPasses(len(plan))
    return plan


def _least_passes(cases: Sequence[Case], table: CountedCost) -> int:
    """Return a number of passes below which not every part is counted."""
    least: dict[tuple[str, int], dict[Arch, int]] = defaultdict(dict)
    for case in cases:
        options: dict[Place, list[int]] = defaultdict(list)
        for slot in case.slots:
            options[table.place(slot.name, slot.index, case.shared)].append(len(slot.options))
        for (name, index, seen), sizes in options.items():
            least[name, index][seen] = -(-max(sizes) // len(sizes))
    return max(len(cases), *(sum(of_place.values()) for of_place in least.values()), 0)


class _Passes:
    """Passes that between them show every case, and every option of a part that a table tells apart; iterate once.

    Slots for which no option waits to be shown get a drawn one, so that the passes also compare parts that the table
    takes for equal.
    """

    def __init__(self, cases: Sequence[Case], table: CountedCost) -> None:
        self._rng = np.random.default_rng(0)
        self._case_by_case = not table.own_counts
        self._cases = [(case, [table.place(s.name, s.index, case.shared) for s in case.slots]) for case in cases]
        self._waiting: dict[Place, dict[tuple[int, Arch], None]] = defaultdict(dict)
        times = range(_SHOWN if table.own_counts else 1)
        for case, places in self._cases:
            for slot, place in zip(case.slots, places, strict=True):
                self._waiting[place].update(dict.fromkeys(product(times, slot.options)))

    def __iter__(self) -> Iterator[Pass]:
        numbers = range(len(self._cases))
        for number in self._rng.permutation(len(numbers)).tolist():  # so that what disproves a table is met early
            yield self._fill(number)
            while self._case_by_case and self._waits(number):
                yield self._fill(number)
        while left := [number for number in numbers if self._waits(number)]:
            yield from (self._fill(number) for number in left if self._waits(number))

    def _waits(self, number: int) -> bool:
        _, places = self._cases[number]
        return any(self._waiting[place] for place in places)

    def _fill(self, number: int) -> Pass:
        case, places = self._cases[number]
        return case, [self._show(place, slot.options) for slot, place in zip(case.slots, places, strict=True)]

    def _show(self, place: Place, options: Sequence[Arch]) -> int:
        """Return the number of the first option that waits, which waits no longer, or of any."""
        waiting = self._waiting[place]
        for time, option in waiting:
            if option in options:
                del waiting[time, option]
                return options.index(option)
        return int(self._rng.integers(len(options)))


def _count(
    counter: _Counter, plan: Sequence[Pass], lists: Mapping[str, str], table: CountedCost
) -> tuple[CountedCost, _Disproof | None]:
    """Return the table of what some networks cost, or the first of them that disproves it."""
    fixed: dict[Arch, int] = {}
    parts: dict[PartKey, int] = {}
    for case, options in plan:
        arch = case.decode(options)
        counts = counter.by_module(arch)
        of_parts = summed = 0
        for slot, option in zip(case.slots, options, strict=True):
            count = counts[f"{lists[slot.name]}.{slot.index}"]
            key = *table.place(slot.name, slot.index, case.shared), slot.options[option]
            of_parts, summed = of_parts + count, summed + parts.setdefault(key, count)
        summed += fixed.setdefault(case.shared, counts[""] - of_parts)
        if summed != counts[""]:
            return table, _Disproof(arch, summed, counts[""], table.unit)
    return replace(table, fixed_counts=fixed, part_counts=parts), None


def _compare(table: CountedCost, counter: _Counter, space: Space, known: Set[Arch]) -> _Disproof | None:
    """Compare the sum with all networks of a small space, or with some of a large one; `known` have been compared."""
    for arch in space if _is_small(counter, space) else space.sample(0, _CHECKED):
        if arch not in known and (summed := table(arch)) != (found := counter.total(arch)):
            return _Disproof(arch, summed, found, table.unit)
    return None


def _is_small(counter: _Counter, space: Space) -> bool:
    if space.size <= _CHECKED or space.size > _ALL or not counter.on_meta:
        return space.size <= _CHECKED
    modules = max(sum(1 for _ in build_skeleton(counter.make, space[at]).modules()) for at in (0, space.size - 1))
    return space.size * modules <= _MODULES
