"""Comparing networks: intervals for their scores, and whether two differ by more than chance.

All intervals are about the data: what other samples of the same kind would show of the same trained networks. How far
a second training with another seed would come out elsewhere is a spread over seeds, for which the units compared here
are seeds instead of samples.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nasx._arguments import whole_number

Floats = NDArray[np.float64]

FEW = 30
"""Values below which an interval is Student's and not a bootstrap's, which would be too narrow."""

_CELLS = 10_000_000  # numbers that a bootstrap holds at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic with the ends of its confidence interval."""

    value: float
    """The statistic itself."""
    low: float
    """The lower end."""
    high: float
    """The upper end."""
    undefined: int = 0
    """Resamples without a value, such as one whose scores are all equal. They could be anything, so they count as -1
    for the lower end and as 1 for the upper: ignoring them would feign certainty where one architecture stands out."""

    def excludes(self, value: float) -> bool:
        """Return whether the value lies outside."""
        return not self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the first of two networks is than the second, on the same samples."""

    value: float
    """Mean of the first's scores minus the second's: above 0 where the first is better."""
    low: float
    """The lower end of its interval."""
    high: float
    """The upper end of its interval."""
    pairs: int
    """Samples (or seeds) that both were scored on."""
    confidence: float
    """Of the interval, in 0..1."""
    of_hits: bool
    """Whether it is a difference of accuracies, so that it can be said in points."""

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return not self.low <= 0 <= self.high

    def sentence(self, first: str, second: str) -> str:
        """Return the result in words, given what the two are called."""
        scale, unit = (100.0, " points") if self.of_hits else (1.0, "")
        numbers = (
            f"{scale * self.value:+.3g}{unit}, {100 * self.confidence:g} % interval {scale * self.low:+.3g} to "
            f"{scale * self.high:+.3g}; {self.pairs:,} compared"
        )
        if not self.shown:
            return f"{first} and {second}: no difference that this data can show ({numbers})"
        return f"{first} is {'better' if self.value > 0 else 'worse'} than {second} ({numbers})"


def accuracy_interval(hits: int, samples: int, *, confidence: float = 0.95) -> Interval:
    """Return an accuracy, hits / samples, with Wilson's interval (1927) of a `confidence` in 0..1.

    Raises ValueError for counts that are no whole numbers, or of which not `0 <= hits <= samples` and `samples >= 1`.
    """
    hits, samples = whole_number("hits", hits), whole_number("samples", samples)
    if not 0 <= hits <= samples or samples < 1:
        raise ValueError(f"`0 <= hits <= samples` and `samples >= 1` must hold, got (hits={hits}, samples={samples})")
    _check_confidence(confidence)
    from scipy import stats  # here, because it takes a second to import

    found = stats.binomtest(hits, samples).proportion_ci(confidence, method="wilson")
    return Interval(hits / samples, float(found.low), float(found.high))


def score_interval(scores: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of scores (samples,) with an interval of a `confidence` in 0..1.

    It is Wilson's where all scores are 0 or 1, else the percentiles of a bootstrap of `resamples` over the samples,
    drawn from `seed`, or Student's with fewer than 30. Raises ValueError for scores that are not finite, fewer than
    two, or no column.
    """
    column = _column("scores", scores)
    _check_enough(column)
    if _are_hits(column):
        return accuracy_interval(int(column.sum()), len(column), confidence=confidence)
    _check_confidence(confidence)
    return Interval(float(column.mean()), *_mean_interval(column, confidence, resamples, seed))


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Difference:
    """Return the mean of `first - second` with an interval; entry i of both is about the same sample, or the same seed.

    `confidence` is in 0..1; `resamples` and `seed` are those of a bootstrap, where there is one. Pairs cancel what both
    have in common, such as how hard an image is, so they show much smaller differences than two intervals side by side.
    Of hits (all values 0 or 1) the interval is Agresti and Min's (2005), which is honest also where the two differ on a
    handful of samples; of other scores it is the percentiles of a bootstrap over the pairs, or Student's with fewer
    than 30, such as accuracies over seeds.

    Raises ValueError for columns of different lengths, fewer than two pairs, and values that are not finite.
    """
    one, other = _column("first", first), _column("second", second)
    if len(one) != len(other):
        raise ValueError(f"a comparison needs both scores of every sample, but got {len(one)} and {len(other)}")
    _check_enough(one)
    _check_confidence(confidence)
    of_hits = _are_hits(one) and _are_hits(other)
    differences = one - other
    if of_hits:
        low, high = _difference_of_hits(differences, confidence)
    else:
        low, high = _mean_interval(differences, confidence, resamples, seed)
    return Difference(float(differences.mean()), low, high, len(one), confidence, of_hits)


def _difference_of_hits(differences: Floats, confidence: float) -> tuple[float, float]:
    from scipy import stats

    # half a sample is added to each of the four outcomes of a pair
    better, worse, pairs = (differences > 0).sum() + 0.5, (differences < 0).sum() + 0.5, len(differences) + 2
    middle = (better - worse) / pairs
    error = math.sqrt(better + worse - (better - worse) ** 2 / pairs) / pairs
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
    return float(max(-1.0, middle - reach)), float(min(1.0, middle + reach))


def _mean_interval(values: Floats, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    from scipy import stats

    if len(values) < FEW:
        reach = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1)) / math.sqrt(len(values))
        return float(values.mean()) - reach, float(values.mean()) + reach
    if resamples < 100:
        raise ValueError(f"an interval needs at least 100 resamples, but got {resamples}; 2000 is usual")
    rng, means = np.random.default_rng(seed), np.empty(resamples)
    batch = max(1, _CELLS // len(values))
    for first in range(0, resamples, batch):
        count = min(batch, resamples - first)
        means[first : first + count] = values[rng.integers(len(values), size=(count, len(values)))].mean(axis=1)
    low, high = np.quantile(means, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def _are_hits(column: Floats) -> bool:
    return bool(((column == 0) | (column == 1)).all())


def _check_enough(values: Floats) -> None:
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, but got {len(values)}")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"`0 < confidence < 1` must hold, but got {confidence}; 0.95 is usual")


def _column(name: str, values: ArrayLike) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or not len(column):
        raise ValueError(f"{name} must hold one number per sample, but got shape {column.shape}")
    broken = np.flatnonzero(~np.isfinite(column))
    if len(broken):
        raise ValueError(f"{name} must be finite, but got {column[broken[0]]} at index {broken[0]}")
    return column
