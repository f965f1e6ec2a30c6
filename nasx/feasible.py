"""The architectures inside a budget: counted exactly and drawn uniformly, without rejection.

A cost that adds up over parts (`nasx.cost.AdditiveCost`) turns the question into one about sums of integers. For each
assignment of the shared choices a table holds, for every partial sum after k parts, the number of ways in which the
remaining parts end inside the budget. Drawing walks the parts in order and takes each option in proportion to what
it leaves possible, so every draw is inside and all are equally likely.

The sums stand in the table either densely, divided by the common divisor of all differences, or as the sorted list of
those that occur. Where both would exceed `max_bytes`, costs are rounded down to buckets and the window is widened
by the largest possible error: draws from the table are then accepted on their exact cost, which keeps them uniform,
and the count is an interval.

Ways are floats, scaled per part so that 2,000 options in 96 parts do not overflow; the exact count is found apart,
modulo several coprime integers (Chinese remainders).
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost, Budget, Cost
from nasx.space import Choice, Draws, Probability, Repeat, Rng, Space, _generator, pick_genes

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MAX_BYTES = 512 << 20
_MAX_ENUMERATED = 1_000_000
_SMALL = 1 << 22  # cells (32 MB) for which a dense table needs no second thought
_CHUNK = 4096  # draws at a time: their weights stay in the cache


@dataclass(frozen=True)
class Attainable:
    """The least and the greatest cost in a space, with architectures that have them."""

    low: int
    high: int
    low_arch: Arch
    high_arch: Arch


@dataclass(slots=True)
class _DrawCounts:
    """How many draws were made, and how many passed: shared by a budget and the children bred inside it."""

    proposed: int = 0
    accepted: int = 0


class NoneFound(ValueError):
    """As many draws as were allowed met the first budget and none of the others."""


class Feasible:
    """The architectures of a space that meet every budget; offers what a `Space` offers to searchers and samplers.

    The first budget whose cost is additive is met exactly; any others filter the draws, at most `max_tries` for
    each that is asked for, and `acceptance` says how many passed. An empty budget is a ValueError with the
    attainable range.
    """

    def __init__(
        self,
        space: Space,
        budgets: Sequence[Budget],
        *,
        max_bytes: int = MAX_BYTES,
        max_tries: int = 10_000,
        _draws: "_DrawCounts | None" = None,
    ) -> None:
        self.space, self.budgets, self.max_tries = space, tuple(budgets), max_tries
        self._max_bytes = max_bytes
        exact = next((b for b in self.budgets if isinstance(b.cost, AdditiveCost)), Budget(_Free()))
        assert isinstance(exact.cost, AdditiveCost)
        self._exact = exact
        self._filters = tuple(b for b in self.budgets if b is not exact)
        if _draws is None:  # children are inside by construction
            for budget in self._filters:
                _refuse_unattainable(space, budget)
        self._cases = list(_cases(space, exact.cost))
        each = max_bytes // len(self._cases)
        self._tables = [_Table.build(case, exact.lower, exact.upper, each) for case in self._cases]
        log_ways = np.array([table.log_ways for table in self._tables])
        if np.all(np.isneginf(log_ways)):
            raise ValueError(_nothing_inside(exact, self.attainable))
        weights = np.exp(log_ways - log_ways.max())
        self._case_weights = weights / weights.sum()
        self._counts = _draws or _DrawCounts()

    def __repr__(self) -> str:
        return f"Feasible({self.space!r}, {'; '.join(map(str, self.budgets))})"

    # Counting

    @cached_property
    def size(self) -> int:
        """Number of architectures, exact; a ValueError where it is only known as an interval (`size_bounds`)."""
        low, high = self.size_bounds
        if low == high:
            return low
        if high > _MAX_ENUMERATED:
            raise ValueError(f"the exact count is not known: between {low} and {high} architectures (see size_bounds)")
        return sum(1 for _ in self)

    @cached_property
    def size_bounds(self) -> tuple[int, int]:
        """Least and greatest possible number of architectures; equal where costs were neither bucketed nor filtered."""
        counts = [table.count_bounds() for table in self._tables]
        low = 0 if self._filters else sum(low for low, _ in counts)
        return low, sum(high for _, high in counts)

    @property
    def acceptance(self) -> float:
        """Share of the draws so far that passed the exact bucketed cost and the further budgets; 1.0 before any.

        Draws of children, by mutation and crossover, count too.
        """
        return self._counts.accepted / self._counts.proposed if self._counts.proposed else 1.0

    def counted_anew(self) -> "Feasible":
        """Return the same set with an `acceptance` of its own; the tables are shared."""
        same = copy.copy(self)
        same._counts = _DrawCounts()
        return same

    @cached_property
    def attainable(self) -> Attainable:
        """The range of the first cost over the whole space, budget aside."""
        return _attainable(self._cases)

    # Membership and enumeration

    def __contains__(self, arch: object) -> bool:
        return arch in self.space and all(Arch(arch) in budget for budget in self.budgets)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Arch]:
        for case, table in zip(self._cases, self._tables, strict=True):
            for codes in table.enumerate():
                arch = case.decode(codes)
                if all(arch in budget for budget in self._filters):
                    yield arch

    def canonical(self, arch: Mapping[str, Value]) -> Arch:
        """Return the architecture in the space's order; a ValueError names the entry or the budget it misses."""
        found = self.space.canonical(arch)
        for budget in self.budgets:
            if found not in budget:
                raise ValueError(f"the architecture has {budget.cost(found):,} {budget.unit}, outside {budget}")
        return found

    def genes(self, arch: Mapping[str, Value]) -> tuple[str, ...]:
        """Return the names of an architecture's choices that had an alternative in the space."""
        return self.space.genes(arch)

    def neighbours(self, arch: Mapping[str, Value]) -> Iterator[Arch]:
        """Yield every architecture inside the budgets that differs in one gene."""
        return (other for other in self.space.neighbours(arch) if all(other in b for b in self.budgets))

    # Draws

    @overload
    def sample(self, rng: Rng) -> Arch: ...
    @overload
    def sample(self, rng: Rng, n: int) -> Sequence[Arch]: ...
    def sample(self, rng: Rng, n: int | None = None) -> Arch | Sequence[Arch]:
        """Draw one architecture, or `n` that decode on access, uniformly over all inside the budgets."""
        drawn = self._draw(_generator(rng), 1 if n is None else n)
        return drawn[0] if n is None else drawn

    def _draw(self, rng: np.random.Generator, n: int) -> Sequence[Arch]:
        cases = rng.choice(len(self._cases), size=n, p=self._case_weights) if len(self._cases) > 1 else np.zeros(n, int)
        codes: list[Any] = [None] * n
        missing = np.arange(n)
        for _ in range(self.max_tries):
            failed = []
            for c in np.unique(cases[missing]):
                places = missing[cases[missing] == c]
                rows, inside = self._tables[c].draw(rng, len(places))
                for place, row, ok in zip(places.tolist(), rows, inside.tolist(), strict=True):
                    if ok and (not self._filters or self._passes(self._cases[c].decode(row))):
                        codes[place] = row
                    else:
                        failed.append(place)
            self._counts.proposed += len(missing)
            self._counts.accepted += len(missing) - len(failed)
            if not failed:
                return Draws(n, lambda i: self._cases[cases[i]].decode(codes[i]))
            missing = np.array(failed)
            if len(self._cases) > 1:  # a refused draw starts over, or cases that pass rarely would be favoured
                cases[missing] = rng.choice(len(self._cases), size=len(missing), p=self._case_weights)
        raise NoneFound(
            f"{self.max_tries:,} draws for one architecture inside {self._exact} met none of "
            f"{'; '.join(map(str, self._filters)) or 'its exact cost'} (acceptance {self.acceptance:.2e}); "
            "loosen one of the budgets"
        )

    def _passes(self, arch: Arch) -> bool:
        return all(arch in budget for budget in self._filters)

    def sample_per_choice(self, rng: Rng) -> Arch:
        """Draw each choice uniformly among the options from which the budget can still be met, one after the other."""
        generator = _generator(rng)
        open_cases = [i for i, table in enumerate(self._tables) if not math.isinf(table.log_ways)]
        for _ in range(self.max_tries):
            c = open_cases[_choose([self._cases[i].shared for i in open_cases], generator)]
            case, table = self._cases[c], self._tables[c]
            codes, total = [], 0
            for k, slot in enumerate(case.slots):
                options = table.open_options(k, total)
                code = int(options[_choose([slot.options[j] for j in options], generator)])
                total += int(table.reduced[k][code])
                codes.append(code)
            arch = case.decode(codes)
            if arch in self._exact and self._passes(arch):
                return arch
        raise NoneFound(f"{self.max_tries:,} draws met none of {'; '.join(map(str, self._filters))}; loosen a budget")

    def _inside(self, space: Space) -> "Feasible":
        return Feasible(space, self.budgets, max_bytes=self._max_bytes, max_tries=self.max_tries, _draws=self._counts)

    def mutate(self, arch: Mapping[str, Value], rng: Rng, probability: Probability = 0.1) -> Arch:
        """Draw a child with some genes drawn anew, uniformly among those that keep the total inside the budgets.

        Genes may have probabilities of their own, as in `Space.mutate`.
        """
        generator = _generator(rng)
        genes = pick_genes(self.space.genes(arch), generator, probability)
        return self._inside(self.space.mutations(arch, genes)).sample(generator)

    def crossover(self, first: Mapping[str, Value], second: Mapping[str, Value], rng: Rng) -> Arch:
        """Draw a child that has each gene from either parent, uniformly among those inside the budgets."""
        return self._inside(self.space.crossings(first, second)).sample(rng)


def _refuse_unattainable(space: Space, budget: Budget) -> None:
    if isinstance(budget.cost, AdditiveCost):
        reach = attainable(space, budget.cost)
        if budget.lower > reach.high or budget.upper < reach.low:
            raise ValueError(_nothing_inside(budget, reach))


def _nothing_inside(budget: Budget, reach: Attainable) -> str:
    message = (
        f"the budget of {budget} holds no architecture of this space; "
        f"attainable are {reach.low:,} to {reach.high:,} {budget.unit}".rstrip()
    )
    bound = budget.at_most if budget.at_most is not None else budget.at_least
    if bound and bound * 1000 < reach.low:
        return f"{message}; budgets are plain counts, so write 1.4e9 for 1.4 G"
    return message


def attainable(space: Space, cost: AdditiveCost) -> Attainable:
    """Return the least and the greatest cost of a space's architectures, with architectures that have them."""
    return _attainable(list(_cases(space, cost)))


class _Free(AdditiveCost):
    """Costs nothing, so that filters alone can stand on the same tables."""

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return 0

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return 0


# Cases: one assignment of the shared choices, and the slots that it leaves to fill


@dataclass(frozen=True)
class _Slot:
    prefix: str
    options: list[Arch]
    costs: Ints
    fragments: dict[int, Arch] = field(default_factory=dict)

    def fragment(self, code: int) -> Arch:
        if code not in self.fragments:
            self.fragments[code] = Arch({f"{self.prefix}.{n}": v for n, v in self.options[code].items()})
        return self.fragments[code]


@dataclass(frozen=True)
class _Case:
    shared: Arch
    fixed: int
    slots: list[_Slot]
    layout: list[dict[str, Value] | int]  # shared entries and slot numbers, in the space's order

    def decode(self, codes: Sequence[int] | Ints) -> Arch:
        items = self.layout
        return Arch.joined(*(self.slots[i].fragment(int(codes[i])) if isinstance(i, int) else i for i in items))


def _cases(space: Space, cost: AdditiveCost) -> Iterator[_Case]:
    outline = _without_parts(space)
    if outline.size > _MAX_ENUMERATED // 10:
        raise ValueError(
            f"the choices outside repeated parts have {outline.size:,} combinations, too many for a table "
            f"(at most {_MAX_ENUMERATED // 10:,}); put choices that add up into a repeat"
        )
    enumerated: dict[str, list[Arch]] = {}  # by JSON: equal spaces may still write 4 and 4.0
    for shared in outline:
        layout: list[dict[str, Value] | int] = []
        slots: list[_Slot] = []
        for name, index, part in _outline(space, "", shared, layout):
            if part.size > _MAX_ENUMERATED:
                raise ValueError(
                    f"a part of {name!r} has {part.size:,} options, too many for a table (at most {_MAX_ENUMERATED:,})"
                )
            key = part.to_json()
            options = enumerated[key] = enumerated.get(key) or list(part)
            costs = [cost.part(name, index, shared, choices) for choices in options]
            slots.append(_Slot(f"{name}.{index}", options, _integers(costs, cost)))
        yield _Case(shared, int(_integers([cost.fixed(shared)], cost)[0]), slots, layout)


def _integers(costs: Sequence[int], cost: Cost) -> Ints:
    array = np.asarray(costs)
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        raise TypeError(
            f"costs must be integers of at most 63 bits, but {cost!r} gave {array.dtype}; round to a finer unit"
        )
    return array.astype(np.int64)


def _without_parts(space: Space) -> Space:
    def bare(node: Choice | Space | Repeat) -> Choice | Space | Repeat:
        if isinstance(node, Space):
            return _without_parts(node)
        if isinstance(node, Repeat):
            return Repeat((Space(),) * len(node.parts), node.count)
        return Choice(tuple((value, _without_parts(inner)) for value, inner in node.options))

    return Space(**{key: bare(node) for key, node in space.nodes.items()})


def _outline(
    space: Space, prefix: str, shared: Arch, layout: list[dict[str, Value] | int], start: int = 0
) -> Iterator[tuple[str, int, Space]]:
    """Yield the parts that an assignment of the shared choices leaves, and write the order of entries into `layout`."""
    for key, node in space.nodes.items():
        name = prefix + key
        if isinstance(node, Space):
            yield from _outline(node, f"{name}.", shared, layout)
        elif isinstance(node, Choice):
            layout.append({name: shared[name]})
            at = node.position(shared[name])
            assert at is not None
            yield from _outline(node.options[at][1], prefix, shared, layout)
        else:
            count = node.count
            if isinstance(count, Choice):
                layout.append({f"{name}.count": shared[f"{name}.count"]})
                count = int(shared[f"{name}.count"])
            for i in range(count):
                layout.append(sum(isinstance(entry, int) for entry in layout))
                yield name, i, node.parts[i]


def _attainable(cases: Sequence[_Case]) -> Attainable:
    found = []
    for pick, best in ((np.argmin, min), (np.argmax, max)):
        codes = [[int(pick(slot.costs)) for slot in case.slots] for case in cases]
        totals = [
            case.fixed + sum(int(slot.costs[j]) for slot, j in zip(case.slots, row, strict=True))
            for case, row in zip(cases, codes, strict=True)
        ]
        at = best(range(len(cases)), key=totals.__getitem__)
        found.append((totals[at], cases[at].decode(codes[at])))
    (low, low_arch), (high, high_arch) = found
    return Attainable(low, high, low_arch, high_arch)


def _choose(candidates: Sequence[Mapping[str, Value]], rng: np.random.Generator) -> int:
    """Pick a candidate by drawing each entry in order; names are the same up to the entry where candidates differ."""
    left = list(range(len(candidates)))
    entries = [list(candidate.items()) for candidate in candidates]
    place = 0
    while len(left) > 1:
        values = list(dict.fromkeys(entries[i][place][1] for i in left))
        value = values[rng.integers(len(values))] if len(values) > 1 else values[0]
        left = [i for i in left if entries[i][place][1] == value]
        place += 1
    return left[0]


# Tables: how many ways lead from a partial sum into the window


@dataclass(frozen=True)
class _Dense:
    """All partial sums from `start` to `start + length - 1`."""

    start: int
    length: int

    def sums(self) -> Ints:
        return np.arange(self.start, self.start + self.length)

    def locate(self, sums: Ints) -> Ints:
        """Return where sums stand, `length` for those that do not."""
        at = sums - self.start
        return np.where((at < 0) | (at >= self.length), self.length, at)

    def add(self, out: npt.NDArray[Any], following: "_Dense", ways: npt.NDArray[Any], cost: int, times: int) -> None:
        """Add `times` the ways of the following level, shifted by a cost, to those of this level."""
        first = max(self.start, following.start - cost)
        stop = min(self.start + self.length, following.start + following.length - cost)
        if first < stop:
            taken = ways[first + cost - following.start : stop + cost - following.start]
            out[first - self.start : stop - self.start] += times * taken


@dataclass(frozen=True)
class _Sparse:
    """The partial sums that occur, sorted."""

    found: Ints

    @property
    def length(self) -> int:
        return len(self.found)

    def sums(self) -> Ints:
        return self.found

    def locate(self, sums: Ints) -> Ints:
        at = np.searchsorted(self.found, sums)
        hit = self.found[np.minimum(at, len(self.found) - 1)] == sums if len(self.found) else np.zeros(sums.shape, bool)
        return np.where(hit, at, self.length)

    def add(self, out: npt.NDArray[Any], following: "_Sparse", ways: npt.NDArray[Any], cost: int, times: int) -> None:
        out[:-1] += times * ways[following.locate(self.found + cost)]


@dataclass(frozen=True)
class _Distinct:
    """A slot's distinct costs in rows of equal length, padded with costs that no option has.

    A draw first picks a row, then a cost in it: with rows of about the square root of the number of costs, that
    reads far fewer ways than going through all of them.
    """

    costs: Ints  # (rows, width)
    times: Ints  # (rows, width): how many options have the cost
    members: Ints  # option numbers, cost after cost
    starts: Ints  # (rows, width): where a cost's members begin

    @classmethod
    def of(cls, costs: Ints, width: int) -> "_Distinct":
        distinct, inverse, times = np.unique(costs, return_inverse=True, return_counts=True)
        padding = (0, -len(distinct) % width)
        starts = np.concatenate([[0], np.cumsum(times)[:-1]])
        rows = [np.pad(column, padding).reshape(-1, width) for column in (distinct, times, starts)]
        return cls(rows[0], rows[1], np.argsort(inverse, kind="stable"), rows[2])


class _Table:
    """Ways into the window for one case. Sums count from the cheapest architecture, in units of the common divisor."""

    def __init__(self, exact: list[Ints], window: tuple[int, int], bucket: int, levels: Sequence[Any]) -> None:
        self.reduced = [costs // bucket for costs in exact]  # what the table counts
        self._exact, self._window, self._bucket, self._levels = exact, window, bucket, levels
        self._ways: list[Floats] = []  # per level, of each sum
        self._row_ways: list[Floats] = []  # per level, of each row of costs and each sum
        self.log_ways = -math.inf
        if levels:
            self._distinct = [_Distinct.of(costs, _row_width(costs)) for costs in self.reduced]
            self._fill()

    @classmethod
    def build(cls, case: _Case, lower: float, upper: float, max_bytes: int) -> "_Table":
        """Tabulate a case: densely where that is small or the shorter, by the sums that occur, or in buckets."""
        least = case.fixed + sum(int(slot.costs.min()) for slot in case.slots)
        exact = [slot.costs - slot.costs.min() for slot in case.slots]
        divisor = math.gcd(*(int(np.gcd.reduce(costs)) for costs in exact)) or 1
        exact = [costs // divisor for costs in exact]
        most = sum(int(costs.max()) for costs in exact)
        low = 0 if lower <= least else min(-(-(int(lower) - least) // divisor), most + 1)
        high = most if upper >= least + most * divisor else (int(upper) - least) // divisor
        if low > high:
            return cls(exact, (low, high), 1, [])
        rows = max(-(-len(np.unique(costs)) // _row_width(costs)) for costs in exact) if exact else 1
        limit, bucket = max_bytes // (8 * (rows + 1)), 1
        levels = _dense_levels(exact, low, high, bucket)
        cells = sum(level.length for level in levels)
        if cells > _SMALL and (found := _sparse_levels(exact, low, high, min(limit, cells // 8))) is not None:
            return cls(exact, (low, high), 1, found)
        while sum(level.length for level in levels) > limit and bucket <= most:
            bucket *= 2
            levels = _dense_levels(exact, low, high, bucket)
        return cls(exact, (low, high), bucket, levels)

    @property
    def bucketed(self) -> bool:
        return self._bucket > 1

    def _backward(
        self, low: int, high: int, modulus: int | None
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], float]]:
        """Yield each level's ways by row and in all, last level first, and the logarithm of their divisor."""
        dtype = np.float64 if modulus is None else np.int64
        last = self._levels[-1]
        ways = np.zeros(last.length + 1, dtype)  # one more than the sums: where sums that do not occur point to
        ways[:-1] = (last.sums() >= low) & (last.sums() <= high)
        scale = 0.0
        yield ways[None], ways, scale
        for k in reversed(range(len(self._distinct))):
            distinct, level, following = self._distinct[k], self._levels[k], self._levels[k + 1]
            rows = np.zeros((len(distinct.costs), level.length + 1), dtype)
            for row, costs, counts in zip(rows, distinct.costs.tolist(), distinct.times.tolist(), strict=True):
                for cost, times in zip(costs, counts, strict=True):
                    level.add(row, following, ways, cost, times)
            if modulus is not None:
                rows %= modulus
            elif (top := rows.sum(axis=0).max(initial=0.0)) > 0:
                rows /= top
                scale += math.log(top)
            ways = rows.sum(axis=0)
            if modulus is not None:
                ways %= modulus
            yield rows, ways, scale

    def _fill(self) -> None:
        passes = list(self._backward(*_bucketed(self._window, self._bucket, len(self._exact)), None))
        self._ways = [ways for _, ways, _ in reversed(passes)]
        self._row_ways = [rows for rows, _, _ in reversed(passes)]
        ways = float(self._ways[0][self._levels[0].locate(np.zeros(1, np.int64))][0])
        self.log_ways = math.log(ways) + passes[-1][2] if ways > 0 else -math.inf

    def count_bounds(self) -> tuple[int, int]:
        """Return the least and the greatest number of architectures that the table can stand for."""
        if math.isinf(self.log_ways):
            return 0, 0
        low, high = self._window
        outer = self._count(*_bucketed(self._window, self._bucket, len(self._exact)))
        if not self.bucketed:
            return outer, outer
        error = len(self._exact) * (self._bucket - 1)
        sure_low, sure_high = -(-low // self._bucket), (high - error) // self._bucket
        return (self._count(sure_low, sure_high) if sure_low <= sure_high else 0), outer

    def _count(self, low: int, high: int) -> int:
        options = [len(costs) for costs in self.reduced]
        total, product, residue = math.prod(options), 1, 0
        modulus = 1 << (62 - max(options, default=1).bit_length())  # sums of products then fit 63 bits
        while product <= total:
            while math.gcd(modulus, product) != 1:
                modulus -= 1
            *_, (_, ways, _) = self._backward(low, high, modulus)
            found = int(ways[self._levels[0].locate(np.zeros(1, np.int64))][0])
            residue += product * ((found - residue) * pow(product, -1, modulus) % modulus)
            product *= modulus
            modulus -= 1
        return residue

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Draw option numbers (n, slots) and whether their exact sums are inside."""
        codes = np.empty((n, len(self.reduced)), np.int64)
        for first in range(0, n, _CHUNK):
            self._draw_chunk(rng, codes[first : first + _CHUNK])
        if not self.bucketed:
            return codes, np.ones(n, bool)
        total = sum((costs[codes[:, k]] for k, costs in enumerate(self._exact)), np.zeros(n, np.int64))
        return codes, (total >= self._window[0]) & (total <= self._window[1])

    def _draw_chunk(self, rng: np.random.Generator, codes: Ints) -> None:
        sums = np.zeros(len(codes), np.int64)
        for k, distinct in enumerate(self._distinct):
            row = _pick(rng, self._row_ways[k][:, self._levels[k].locate(sums)].T)
            at = self._levels[k + 1].locate(sums[:, None] + distinct.costs[row])
            column = _pick(rng, distinct.times[row] * self._ways[k + 1][at])
            member = (rng.random(len(codes)) * distinct.times[row, column]).astype(np.int64)
            codes[:, k] = distinct.members[distinct.starts[row, column] + member]
            sums += distinct.costs[row, column]

    def open_options(self, k: int, total: int) -> Ints:
        """Return the options of slot k from which the window can still be reached."""
        at = self._levels[k + 1].locate(total + self.reduced[k])
        return np.flatnonzero(self._ways[k + 1][at] > 0)

    def enumerate(self) -> Iterator[list[int]]:
        if math.isinf(self.log_ways):
            return
        codes: list[int] = []

        def below(k: int, total: int) -> Iterator[list[int]]:
            if k == len(self.reduced):
                exact = sum(int(costs[c]) for costs, c in zip(self._exact, codes, strict=True))
                if self._window[0] <= exact <= self._window[1]:
                    yield codes
                return
            for code in self.open_options(k, total).tolist():
                codes.append(code)
                yield from below(k + 1, total + int(self.reduced[k][code]))
                codes.pop()

        yield from below(0, 0)


def _row_width(costs: Ints) -> int:
    return max(1, math.isqrt(len(np.unique(costs))))


def _pick(rng: np.random.Generator, weights: Floats) -> Ints:
    """Draw a column for each row of weights, in proportion to them."""
    total = np.cumsum(weights, axis=1)
    below = np.nextafter(total[:, -1], 0.0)  # rounding up to the total would pick a column of weight 0
    drawn = np.minimum(rng.random(len(weights)) * total[:, -1], below)
    return np.argmax(total > drawn[:, None], axis=1)


def _bucketed(window: tuple[int, int], bucket: int, parts: int) -> tuple[int, int]:
    """Return the window in buckets, widened by what rounding each part down can have lost."""
    return max(0, -(-(window[0] - parts * (bucket - 1)) // bucket)), window[1] // bucket


def _dense_levels(exact: Sequence[Ints], low: int, high: int, bucket: int) -> list[_Dense]:
    """Return, per level, the range of partial sums from which the window can be reached at all."""
    most = [int(c.max()) // bucket for c in exact]
    low, high = _bucketed((low, high), bucket, len(exact))
    levels = []
    for k in range(len(exact) + 1):
        start = max(0, low - sum(most[k:]))
        levels.append(_Dense(start, max(0, min(sum(most[:k]), high) - start + 1)))
    return levels


def _sparse_levels(costs: Sequence[Ints], low: int, high: int, limit: int) -> list[_Sparse] | None:
    """Return the partial sums that occur, or None once they are more than `limit` in all."""
    found = np.zeros(1, np.int64)
    levels, used = [_Sparse(found)], 0
    left = sum(int(c.max()) for c in costs)
    for slot in costs:
        left -= int(slot.max())
        distinct = np.unique(slot)
        if len(found) * len(distinct) > 8 * limit:
            return None
        found = np.unique(found[:, None] + distinct)
        found = found[(found + left >= low) & (found <= high)]
        used += len(found)
        if used > limit:
            return None
        levels.append(_Sparse(found))
    return levels
