"""Sums of integers inside a window: rows of options counted exactly and drawn uniformly, without rejection.

A row takes one option from each of several slots, and every option has an integer cost. A `SumTable` holds, for every
partial sum after k slots, the number of ways in which the remaining slots end inside the window. Drawing walks the
slots in order and takes each option in proportion to the ways that it leaves, so every row drawn is inside and all are
equally likely.

The partial sums stand in the table either densely, divided by the common divisor of all differences, or as the sorted
list of those that occur. Where both would exceed `max_bytes`, costs are rounded down to buckets and the window is
widened by the largest possible error: rows drawn are then accepted on their exact sum, which keeps them uniform, and
the count is an interval.

Several kinds of costs can be in windows of their own at once (`SumTable.joint`): their sums become the digits of one
number, so that what adds up is a number again, and the sums that occur are listed.

Ways are floats, scaled per slot so that 2,000 options in 96 slots do not overflow. The exact count is computed
separately, modulo several coprime integers (Chinese remainder theorem).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Ints", "SumTable"]

Ints = npt.NDArray[np.int64]
"""Whole numbers, such as the costs of a slot's options."""

_Floats = npt.NDArray[np.float64]

_SMALL = 1 << 22  # cells (32 MB) up to which a dense table is always taken
_LARGEST = 1 << 62
_CHUNK = 4096  # rows drawn at a time: their weights stay in the cache


class SumTable:
    """The rows of one option per slot whose costs add up to a sum inside a window.

    It is made by `of`, or by `joint` for several kinds of costs at once.
    """

    def __init__(self, exact: Sequence[Ints], window: "_Window", levels: Sequence[Any], bucket: int) -> None:
        self._exact, self._inside, self._levels, self._bucket = exact, window, levels, bucket
        self._reduced = [slot // bucket for slot in exact]  # what the table counts
        self._ways: list[_Floats] = []  # per level, of each sum
        self._row_ways: list[_Floats] = []  # per level, of each row of distinct costs and each sum
        self.log_ways = -math.inf
        """Natural logarithm of the number of rows, an upper bound where costs were bucketed; -inf for none."""
        self._distinct: list[_Distinct] = []
        if levels:
            self._fill()

    @classmethod
    def of(cls, costs: Sequence[Ints], low: float, high: float, *, max_bytes: int) -> "SumTable":
        """Return the table of the rows whose sum is inside a window.

        `costs` holds the costs of each slot's options, `low` and `high` are the inclusive bounds of the sum. The table
        takes about `max_bytes` at most.
        """
        exact, first, last = _reduced(costs, low, high)
        levels, bucket = _planned(exact, first, last, max_bytes) if first <= last else ([], 1)
        return cls(exact, _Window.of(first, last), levels, bucket)

    @classmethod
    def joint(
        cls, costs: Sequence[Sequence[Ints]], windows: Sequence[tuple[float, float]], *, max_sums: int
    ) -> "SumTable | None":
        """Return the table of the rows whose sums of several kinds of costs are inside a window each.

        `costs` holds, for each kind, the costs of each slot's options. None where more than `max_sums` combinations of
        sums occur, or where these do not fit 62 bits.
        """
        together = [np.zeros(len(slot), np.int64) for slot in costs[0]]
        stride, digits, most = 1, [], []
        for of_kind, (low, high) in zip(costs, windows, strict=True):
            exact, first, last = _reduced(of_kind, low, high)
            most.append([int(slot.max()) for slot in exact])
            base = sum(most[-1]) + 1
            if stride * base > _LARGEST:
                return None
            together = [sums + stride * slot for sums, slot in zip(together, exact, strict=True)]
            digits.append((stride, base, first, last))
            stride *= base
        window = _Window(tuple(digits))
        levels = _sparse_levels(together, window, most, max_sums)
        return None if levels is None else cls(together, window, levels, bucket=1)

    @property
    def empty(self) -> bool:
        """Whether no row is inside; False is only certain where costs were not bucketed."""
        return math.isinf(self.log_ways)

    @property
    def bucketed(self) -> bool:
        """Whether costs were rounded down to buckets to save memory."""
        return self._bucket > 1

    def count_bounds(self) -> tuple[int, int]:
        """Return the least and the greatest possible number of rows; equal where costs were not bucketed."""
        if self.empty:
            return 0, 0
        outer = self._count(self._in_buckets())
        if not self.bucketed:
            return outer, outer
        error = len(self._exact) * (self._bucket - 1)
        low, high = self._inside.only
        sure_low, sure_high = -(-low // self._bucket), (high - error) // self._bucket
        return (self._count(_Window.of(sure_low, sure_high)) if sure_low <= sure_high else 0), outer

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Draw option numbers (n, slots), uniformly, and whether their exact sums are inside (n,)."""
        options = np.empty((n, len(self._reduced)), np.int64)
        for first in range(0, n, _CHUNK):
            self._draw_chunk(rng, options[first : first + _CHUNK])
        if not self.bucketed:
            return options, np.ones(n, bool)
        total = sum((slot[options[:, k]] for k, slot in enumerate(self._exact)), np.zeros(n, np.int64))
        return options, self._inside.holds(total)

    def open_options(self, taken: Sequence[int]) -> Ints:
        """Return the options of the next slot from which the window can be reached after those taken so far."""
        return self._open(len(taken), sum(int(slot[i]) for slot, i in zip(self._reduced, taken, strict=False)))

    def enumerate(self) -> Iterator[list[int]]:
        """Yield the option numbers of every row inside; the list is reused."""
        if self.empty:
            return
        taken: list[int] = []

        def below(k: int, total: int) -> Iterator[list[int]]:
            if k == len(self._reduced):
                exact = sum(int(slot[option]) for slot, option in zip(self._exact, taken, strict=True))
                if self._inside.holds(np.array([exact]))[0]:
                    yield taken
                return
            for option in self._open(k, total).tolist():
                taken.append(option)
                yield from below(k + 1, total + int(self._reduced[k][option]))
                taken.pop()

        yield from below(0, 0)

    def range_of(self, others: Sequence[Ints]) -> tuple[int, int] | None:
        """Return the least and the greatest sum of other costs of the same options among the rows inside.

        None where no row is inside. Where costs were bucketed the range may be wider than the true one.
        """
        if self.empty:
            return None
        least = [int(slot.min()) for slot in others]
        most = [int(slot.max()) for slot in others]
        high = sum(least) + self._greatest([slot - low for slot, low in zip(others, least, strict=True)])
        low = sum(most) - self._greatest([high - slot for slot, high in zip(others, most, strict=True)])
        return low, high

    def _in_buckets(self) -> "_Window":
        if not self.bucketed:
            return self._inside
        return _Window.of(*_bucketed(self._inside.only, self._bucket, len(self._exact)))

    def _backward(
        self, window: "_Window", modulus: int | None
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], float]]:
        """Yield each level's ways by row and in all, last level first, and the logarithm of their divisor."""
        dtype = np.float64 if modulus is None else np.int64
        last = self._levels[-1]
        ways = np.zeros(last.length + 1, dtype)  # one more than the sums: where sums that do not occur point to
        ways[:-1] = window.holds(last.sums())
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
        """Count the ways from every partial sum into the window."""
        self._distinct = [_Distinct.of(slot, _row_width(slot)) for slot in self._reduced]
        passes = list(self._backward(self._in_buckets(), None))
        self._ways = [ways for _, ways, _ in reversed(passes)]
        self._row_ways = [rows for rows, _, _ in reversed(passes)]
        ways = float(self._ways[0][self._levels[0].locate(np.zeros(1, np.int64))][0])
        self.log_ways = math.log(ways) + passes[-1][2] if ways > 0 else -math.inf

    def _count(self, window: "_Window") -> int:
        options = [len(slot) for slot in self._reduced]
        total, product, residue = math.prod(options), 1, 0
        modulus = 1 << (62 - max(options, default=1).bit_length())  # sums of products then fit 63 bits
        while product <= total:
            while math.gcd(modulus, product) != 1:
                modulus -= 1
            *_, (_, ways, _) = self._backward(window, modulus)
            found = int(ways[self._levels[0].locate(np.zeros(1, np.int64))][0])
            residue += product * ((found - residue) * pow(product, -1, modulus) % modulus)
            product *= modulus
            modulus -= 1
        return residue

    def _open(self, k: int, total: int) -> Ints:
        at = self._levels[k + 1].locate(total + self._reduced[k])
        return np.flatnonzero(self._ways[k + 1][at] > 0)

    def _greatest(self, others: Sequence[Ints]) -> int:
        """Return the greatest sum of costs of 0 or more among the rows inside."""
        following = np.where(self._ways[-1] > 0, 0, -1)  # -1: the window is out of reach
        for k in reversed(range(len(self._reduced))):
            level, after = self._levels[k], self._levels[k + 1]
            best = np.full(level.length + 1, -1, np.int64)
            for cost in np.unique(self._reduced[k]).tolist():
                most = int(others[k][self._reduced[k] == cost].max())
                level.raise_to(best, after, np.where(following >= 0, following + most, -1), cost)
            following = best
        return int(following[self._levels[0].locate(np.zeros(1, np.int64))][0])

    def _draw_chunk(self, rng: np.random.Generator, options: Ints) -> None:
        sums = np.zeros(len(options), np.int64)
        for k, distinct in enumerate(self._distinct):
            row = _pick(rng, self._row_ways[k][:, self._levels[k].locate(sums)].T)
            at = self._levels[k + 1].locate(sums[:, None] + distinct.costs[row])
            column = _pick(rng, distinct.times[row] * self._ways[k + 1][at])
            member = (rng.random(len(options)) * distinct.times[row, column]).astype(np.int64)
            options[:, k] = distinct.members[distinct.starts[row, column] + member]
            sums += distinct.costs[row, column]


@dataclass(frozen=True)
class _Window:
    """Bounds, both inclusive, of each digit of a sum: (place value, base, low, high); a base of 0 is no digit's end."""

    digits: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of(cls, low: int, high: int) -> "_Window":
        """Return the window of a sum of one digit."""
        return cls(((1, 0, low, high),))

    @property
    def only(self) -> tuple[int, int]:
        """The bounds of the only digit."""
        ((_, _, low, high),) = self.digits
        return low, high

    def holds(self, sums: Ints) -> npt.NDArray[np.bool_]:
        return self.reachable(sums, [0] * len(self.digits))

    def reachable(self, sums: Ints, left: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Whether partial sums can still end inside, if each digit can grow by as much as is left."""
        inside = np.ones(sums.shape, bool)
        for (place, base, low, high), more in zip(self.digits, left, strict=True):
            digit = sums // place % base if base else sums
            inside &= (digit + more >= low) & (digit <= high)
        return inside


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
        here, there = self._overlap(following, cost)
        out[here] += times * ways[there]

    def raise_to(self, out: Ints, following: "_Dense", values: Ints, cost: int) -> None:
        """Raise this level's values to those of the following level, shifted by a cost, where these are greater."""
        here, there = self._overlap(following, cost)
        np.maximum(out[here], values[there], out=out[here])

    def _overlap(self, following: "_Dense", cost: int) -> tuple[slice, slice]:
        first = max(self.start, following.start - cost)
        stop = max(first, min(self.start + self.length, following.start + following.length - cost))
        there = slice(first + cost - following.start, stop + cost - following.start)
        return slice(first - self.start, stop - self.start), there


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

    def raise_to(self, out: Ints, following: "_Sparse", values: Ints, cost: int) -> None:
        np.maximum(out[:-1], values[following.locate(self.found + cost)], out=out[:-1])


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


def _reduced(costs: Sequence[Ints], low: float, high: float) -> tuple[list[Ints], int, int]:
    """Return costs that count from the cheapest row in units of their common divisor, and the window in these units.

    A window that no sum can lie in is (1, 0).
    """
    least = sum(int(slot.min()) for slot in costs)
    exact = [slot - slot.min() for slot in costs]
    divisor = math.gcd(*(int(np.gcd.reduce(slot)) for slot in exact)) or 1
    exact = [slot // divisor for slot in exact]
    low, high = max(low, least), min(high, least + divisor * sum(int(slot.max()) for slot in exact))
    if low > high:
        return exact, 1, 0
    return exact, -(-(int(low) - least) // divisor), (int(high) - least) // divisor


def _planned(exact: Sequence[Ints], low: int, high: int, max_bytes: int) -> tuple[Sequence[Any], int]:
    """Return the partial sums of each level, and the size of buckets: 1 where no cost is rounded."""
    most = [int(slot.max()) for slot in exact]
    rows = max((-(-len(np.unique(slot)) // _row_width(slot)) for slot in exact), default=1)
    limit, bucket = max_bytes // (8 * (rows + 1)), 1
    dense = _dense_levels(exact, low, high, bucket)
    cells = sum(level.length for level in dense)
    if cells > _SMALL:
        sparse = _sparse_levels(exact, _Window.of(low, high), [most], min(limit, cells // 8))
        if sparse is not None:
            return sparse, 1
    while sum(level.length for level in dense) > limit and bucket <= sum(most):
        bucket *= 2
        dense = _dense_levels(exact, low, high, bucket)
    return dense, bucket


def _row_width(costs: Ints) -> int:
    return max(1, math.isqrt(len(np.unique(costs))))


def _pick(rng: np.random.Generator, weights: _Floats) -> Ints:
    """Draw a column for each row of weights, in proportion to them."""
    total = np.cumsum(weights, axis=1)
    below = np.nextafter(total[:, -1], 0.0)  # rounding up to the total would pick a column of weight 0
    drawn = np.minimum(rng.random(len(weights)) * total[:, -1], below)
    return np.argmax(total > drawn[:, None], axis=1)


def _bucketed(window: tuple[int, int], bucket: int, slots: int) -> tuple[int, int]:
    """Return the window in buckets, widened by what rounding each slot down can have lost."""
    return max(0, -(-(window[0] - slots * (bucket - 1)) // bucket)), window[1] // bucket


def _dense_levels(exact: Sequence[Ints], low: int, high: int, bucket: int) -> list[_Dense]:
    """Return, per level, the range of partial sums from which the window can be reached at all."""
    most = [int(slot.max()) // bucket for slot in exact]
    low, high = _bucketed((low, high), bucket, len(exact))
    levels = []
    for k in range(len(exact) + 1):
        start = max(0, low - sum(most[k:]))
        levels.append(_Dense(start, max(0, min(sum(most[:k]), high) - start + 1)))
    return levels


def _sparse_levels(
    exact: Sequence[Ints], window: _Window, most: Sequence[Sequence[int]], limit: int
) -> list[_Sparse] | None:
    """Return the partial sums from which all windows can be reached, or None once they are more than `limit` in all.

    `most` holds, for each digit, the greatest cost of each slot.
    """
    found = np.zeros(1, np.int64)
    levels, used = [_Sparse(found)], 0
    for k, slot in enumerate(exact):
        distinct = np.unique(slot)
        if len(found) * len(distinct) > 8 * limit:
            return None
        found = np.unique(found[:, None] + distinct)
        found = found[window.reachable(found, [sum(of_digit[k + 1 :]) for of_digit in most])]
        used += len(found)
        if used > limit:
            return None
        levels.append(_Sparse(found))
    return levels
