"""Racing: a generation is scored on growing shared parts of the validation data, and clear losers drop out early.

All candidates see the same samples in the same random order, drawn without replacement, so that only samples on which
they differ tell them apart. After each look the mean scores over all samples are, given those over the samples seen,
about normal: with the paired covariance of the scores, a finite population's correction, and shrunk towards their mean
by as much as the spread of the candidates is noise (empirical Bayes; without it the luckiest of many would look better
than they are). Draws from that joint distribution say what dropping a set of candidates would cost: how much lower the
mean score of the best `keep` would be. The most are dropped for which the probability of a cost above the tolerance,
and the expected cost, stay inside what may be spent by that look. So correlated candidates, ties and the number of
comparisons are accounted for together rather than pair by pair.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nasx._arguments import checked_seed, whole_number
from nasx.arch import Arch

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Scores = Bools | Floats | Sequence[Bools | Floats | None]
"""For each of some candidates its score on each of some samples: bool, whether it is right, or float, all of one kind.
None for a candidate that failed."""

FEWEST_SAMPLES = 1_000
"""Validation samples below which bounds never separate in time, so that every candidate gets all of them."""
LOOKS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8)
"""After which shares of the samples candidates may be dropped."""
TOLERANCE = 0.001
"""The tolerance for hits, an accuracy: 0.1 points."""
_OF_SPREAD = 0.1  # the tolerance for other scores, in standard deviations of the candidates' means
_DRAWS = 2_000
_EXPECTED = 0.3  # of the tolerance: many small losses add up, none of them likely
_TINY = 1e-200  # where no score differs from another
_LEAST_SPREAD = 0.1  # of what is seen, taken for real where all of it could be noise


@dataclass(frozen=True, slots=True)
class Race:
    """What a race found, and what it took."""

    scores: Mapping[Arch, float]
    """Mean score of every candidate, in the order given; of hits an accuracy in 0..1. Over all samples for those that
    were kept. Of the others an estimate, corrected by how hard their samples were for the kept, and below the last of
    the best `keep`. NaN for those that failed."""
    kept: tuple[Arch, ...]
    """The candidates that were scored on all samples, best first; ties go to the earlier one."""
    looks: tuple[tuple[int, int], ...]
    """How many samples had been seen at each look, and how many candidates were left after it."""
    samples: int
    """Validation samples evaluated, each counted for every candidate that saw it."""
    samples_in_full: int
    """The same had every candidate been scored on all samples."""
    error_probability: float
    """Probability, at most, that the mean score of the best `keep` is lower by more than the tolerance than without
    dropping any; 0 where none was dropped."""
    tolerance: float
    """The tolerance that held, in the unit of the scores; 0 where none was dropped."""


class _Risk(NamedTuple):
    """The probability of a cost above the tolerance, and the expected cost."""

    probability: float
    expected_cost: float


def race(
    archs: Sequence[Arch],
    score: Callable[[Sequence[Arch], Ints], Scores],
    samples: int,
    *,
    keep: int = 5,
    error_probability: float = 0.05,
    tolerance: float | None = None,
    looks: Sequence[float] = LOOKS,
    seed: int = 0,
) -> Race:
    """Score candidates on validation samples, and drop those that are very unlikely to be among the best `keep`.

    `score(archs, indices)` returns, for each of some candidates, its scores on the samples at some sorted indices in
    [0, `samples`), (indices,): bool for which it gets right, or finite float, higher is better; or None where it
    failed. It is asked for those that are left, of samples that they have not seen. Who fails is out; where fewer than
    `keep` are left at the end, the best of those that were dropped are scored on all samples after all. `seed` decides
    the order of samples; give every generation its own, for candidates bred from earlier scores are no longer
    independent of an order.

    With probability 1 - `error_probability`, the mean score of the best `keep` candidates that were scored on all
    samples is at most `tolerance` below that of the true best, those that would be best over all samples. The tolerance
    is an accuracy of 0.001 for hits. For other scores, whose unit is unknown, it is a tenth of the standard deviation
    of the candidates' means at the first look. The probability is that of the normal distribution that the samples seen
    leave, not a bound for any finite number of them. With fewer than 1,000 samples, or no more candidates than are
    kept, this is plain evaluation. `looks` are shares of the samples, in growing order. Raises ValueError for arguments
    that do not fit, and where `score` returns something else.
    """
    archs = tuple(archs)
    samples, keep, seed = whole_number("samples", samples), whole_number("keep", keep), checked_seed(seed)
    _check(archs, samples, keep, error_probability, tolerance, looks)
    racing = samples >= FEWEST_SAMPLES and len(archs) > keep
    sizes = sorted({round(share * samples) for share in looks} - {0, samples}) if racing else []
    running = _Race(archs, score, samples, keep, tolerance, np.random.default_rng(seed))
    for number, size in enumerate(sizes, 1):
        if not running.is_open:
            break
        running.look(size, number / len(sizes), error_probability)
    running.finish()
    return running.result(error_probability)


def _check(
    archs: Sequence[Arch],
    samples: int,
    keep: int,
    error_probability: float,
    tolerance: float | None,
    looks: Sequence[float],
) -> None:
    distinct = len(set(archs))
    if not 0 < distinct == len(archs):
        raise ValueError(f"a race needs candidates that differ, but got {len(archs)}, {distinct} of them distinct")
    if samples < 1:
        raise ValueError(f"a race needs at least one sample, but got {samples}")
    if keep < 1:
        raise ValueError(f"at least one candidate must be kept, but got keep={keep}")
    if not 0 < error_probability < 1:
        raise ValueError(f"`0 < error_probability < 1` must hold, but got {error_probability}")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ValueError(f"`tolerance > 0` must hold, in the unit of the scores (0.001 is 0.1 points), got {tolerance}")
    if list(looks) != sorted(set(looks)) or not all(0 < share < 1 for share in looks):
        raise ValueError(f"looks must be growing shares of the samples between 0 and 1, but got {tuple(looks)}")


class _Race:
    """A race under way: who is left, and what has been seen."""

    def __init__(
        self,
        archs: Sequence[Arch],
        score: Callable[[Sequence[Arch], Ints], Scores],
        samples: int,
        keep: int,
        tolerance: float | None,
        rng: np.random.Generator,
    ) -> None:
        self._archs, self._score, self._samples, self._keep = archs, score, samples, keep
        self._tolerance, self._rng = tolerance, rng
        self._order = rng.permutation(samples)
        self._values = _Values(len(archs), samples)
        self._seen = np.zeros(len(archs), np.int64)
        self._failed = np.zeros(len(archs), bool)
        self._left = np.arange(len(archs))
        self._looks: list[tuple[int, int]] = []
        self._used = 0
        self._spent = _Risk(0.0, 0.0)

    @property
    def is_open(self) -> bool:
        """Whether more candidates are left than are kept."""
        return len(self._left) > self._keep

    def evaluate(self, candidates: Ints, upto: int) -> Ints:
        """Return those that have now seen so many samples; all must have seen as many as each other before."""
        columns = np.arange(self._seen[candidates[0]], upto)
        columns = columns[np.argsort(self._order[columns])]
        found = self._score([self._archs[i] for i in candidates.tolist()], self._order[columns])
        rows = self._values.checked(found, len(candidates), len(columns))
        for i, row in zip(candidates.tolist(), rows, strict=True):
            self._failed[i] = row is None
            if row is not None:
                self._values.rows[i, columns] = row
        self._seen[candidates] = upto
        self._used += len(candidates) * len(columns)
        return candidates[~self._failed[candidates]]

    def look(self, size: int, share: float, error_probability: float) -> None:
        """Drop whom the first samples allow, by when this share of the risk may be spent."""
        self._left = self.evaluate(self._left, size)
        if not self.is_open:
            return
        seen = self._values.rows[self._left, :size]
        if self._tolerance is None:
            self._tolerance = TOLERANCE if self._values.are_hits else _OF_SPREAD * _spread(seen.mean(axis=1))
        ranked = self._left[np.argsort(-seen.sum(axis=1, dtype=np.float64), kind="stable")]
        allowed = _Risk(share * error_probability, share * _EXPECTED * self._tolerance)
        rows = self._values.rows[ranked, :size]
        fewest, self._spent = _fewest(rows, self._samples, self._keep, self._tolerance, self._spent, allowed, self._rng)
        self._left = np.sort(ranked[:fewest])
        self._looks.append((size, len(self._left)))

    def finish(self) -> None:
        """Score those that are left on all samples, and the best of the dropped where these are too few."""
        if len(self._left):
            self._left = self.evaluate(self._left, self._samples)
        while len(self._left) < self._keep:
            dropped = np.flatnonzero(~self._failed & (self._seen < self._samples))
            if not dropped.size:
                break
            best = dropped[np.argmax([self._values.rows[i, : self._seen[i]].mean() for i in dropped])]
            self._left = np.sort(np.append(self._left, self.evaluate(np.array([best]), self._samples)))

    def result(self, error_probability: float) -> Race:
        scores = _scores(self._values, self._seen, self._failed, self._left, self._keep)
        best_first = sorted(self._left.tolist(), key=lambda i: -scores[i])
        dropped = len(self._left) < len(self._archs)
        return Race(
            scores=dict(zip(self._archs, scores.tolist(), strict=True)),
            kept=tuple(self._archs[i] for i in best_first),
            looks=tuple(self._looks),
            samples=self._used,
            samples_in_full=self._samples * len(self._archs),
            error_probability=error_probability if dropped else 0.0,
            tolerance=self._tolerance if self._tolerance is not None and dropped else 0.0,
        )


class _Values:
    """The scores of candidates (candidates, samples), columns in the order of evaluation; bool where they are hits."""

    def __init__(self, candidates: int, samples: int) -> None:
        self.rows: Bools | Floats = np.zeros((candidates, samples), bool)
        self._known = False

    @property
    def are_hits(self) -> bool:
        return self.rows.dtype == np.bool_

    def checked(self, found: Scores, candidates: int, samples: int) -> Scores:
        """Return what `score` gave, if it is what it should be; the first scores decide whether all are hits."""
        try:
            returned = len(found)
        except TypeError:
            raise ValueError(
                f"`score` must return scores for {candidates} candidates, but returned {found!r}"
            ) from None
        if returned != candidates:
            raise ValueError(f"`score` must return scores for {candidates} candidates, but returned {returned}")
        for row in found:
            if row is None:
                continue
            if not isinstance(row, np.ndarray):
                raise ValueError(
                    "`score` must return a numpy array for each candidate, or None for one that failed, but returned "
                    f"{type(row).__name__}; write np.asarray(scores)"
                )
            if row.dtype.kind not in "bf" or row.shape != (samples,):
                raise ValueError(
                    f"`score` must return {samples} bools or floats each, but returned {row.dtype} {row.shape}"
                )
            if not self._known:
                self.rows, self._known = self.rows.astype(bool if row.dtype.kind == "b" else np.float64), True
            if (row.dtype.kind == "b") is not self.are_hits:
                raise ValueError("`score` must return bools for all or floats for all, but returned both")
            if not np.isfinite(row).all():
                raise ValueError("`score` must return finite scores, and None for a candidate that failed")
        return found


def _fewest(
    values: Bools | Floats,
    samples: int,
    keep: int,
    tolerance: float,
    spent: _Risk,
    allowed: _Risk,
    rng: np.random.Generator,
) -> tuple[int, _Risk]:
    """Return to how few of some candidates, best first, they can be cut, and the risk spent with that."""
    draws = _drawn_means(values, samples, rng)
    best = _mean_of_top(draws, keep)

    def risk(left: int) -> _Risk:
        cost = best - _mean_of_top(draws[:, :left], keep)
        above = float(np.mean(cost > tolerance - spent.expected_cost))
        return _Risk(spent.probability + above, spent.expected_cost + float(np.mean(cost)))

    fewest, enough = keep, len(values)  # the risk falls with the number that is left
    while fewest < enough:
        middle = (fewest + enough) // 2
        found = risk(middle)
        if found.probability <= allowed.probability and found.expected_cost <= allowed.expected_cost:
            enough = middle
        else:
            fewest = middle + 1
    return fewest, risk(fewest)


def _drawn_means(values: Bools | Floats, samples: int, rng: np.random.Generator) -> Floats:
    """Draw the means over all samples (draws, candidates) that may stand behind the scores seen, less their mean."""
    candidates, size = values.shape
    seen = values.mean(axis=1)
    seen -= seen.mean()
    # one more sample on which each differs alone, by a whole hit or a standard deviation: equals may come to differ
    step = 1.0 if values.dtype == np.bool_ else float(values.var(axis=1).mean()) or _TINY
    covariance = (np.cov(values.astype(np.float64)) + step * np.eye(candidates) / size) / size * (1 - size / samples)
    noise = rng.standard_normal((_DRAWS, candidates)) @ np.linalg.cholesky(covariance).T
    noise -= noise.mean(axis=1, keepdims=True)
    from_noise = (np.trace(covariance) - covariance.sum() / candidates) / (candidates - 1)
    spread = _spread(seen) ** 2
    real = max(_LEAST_SPREAD, 1 - from_noise / spread) if spread else _LEAST_SPREAD
    return real * seen + np.sqrt(real) * noise


def _spread(means: Floats) -> float:
    """Return the standard deviation of candidates' means; an outlier says nothing of how the others differ."""
    middle = float(np.subtract(*np.quantile(means, (0.75, 0.25)))) / 1.349
    return min(float(means.std(ddof=1)), middle)


def _mean_of_top(draws: Floats, keep: int) -> Floats:
    return np.partition(draws, draws.shape[1] - keep, axis=1)[:, -keep:].mean(axis=1)


def _scores(values: _Values, seen: Ints, failed: Bools, kept: Ints, keep: int) -> Floats:
    """Return the means of the kept, estimates for those that were dropped, and NaN for those that failed."""
    rows = values.rows
    scores = np.array([row[:size].mean() for row, size in zip(rows, seen.tolist(), strict=True)])
    scores[failed] = np.nan
    # one sample behind the last of the best at least, or as little as there is
    worst = np.sort(scores[kept])[::-1][:keep][-1] if len(kept) else 0.0
    bound = max(0.0, worst - 1 / rows.shape[1]) if values.are_hits else np.nextafter(worst, -np.inf)
    for i in np.setdiff1d(np.flatnonzero(~failed), kept):
        easier = rows[kept, : seen[i]].mean() - rows[kept].mean()
        scores[i] = min(scores[i] - easier, bound)
        if values.are_hits:
            scores[i] = max(scores[i], 0.0)
    return scores
