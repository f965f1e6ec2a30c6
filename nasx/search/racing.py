"""Racing: a generation is scored on growing shared subsets of the validation images, and clear losers drop out early.

All candidates see the same images in the same random order, drawn without replacement, so that only images on which
they differ tell them apart. After each look the accuracies over all images are, given those over the images seen, about
normal: with the paired covariance of the hits, a finite population's correction, and shrunk towards their mean by as
much as the spread of the candidates is noise (empirical Bayes; without it the luckiest of many would look better than
they are). Draws from that joint distribution say what dropping a set of candidates would cost: how much lower the mean
accuracy of the best `keep` would be. The most are dropped for which the probability of a cost above the tolerance, and
the expected cost, stay inside what may be spent by that look. So correlated candidates, ties and the number of
comparisons are accounted for together rather than pair by pair.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nasx.arch import Arch

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Hits = Bools | Sequence[Bools | None]
"""For each of some candidates which of some images it gets right; None for one that failed."""

FEWEST_IMAGES = 1_000
"""Validation images below which bounds never separate in time, so that every candidate gets all of them."""
LOOKS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8)
"""After which shares of the images candidates may be dropped."""
_DRAWS = 2_000
_EXPECTED = 0.3  # of the tolerance: many small costs add up, of which none has a large probability
_LEAST_SPREAD = 0.1  # of what is seen, taken for real where all of it could be noise


@dataclass(frozen=True, slots=True)
class Race:
    """What a race found, and what it took."""

    scores: Mapping[Arch, float]
    """Accuracy in 0..1 of every candidate, in the order given: over all images for those that were kept. Of the others
    an estimate, corrected by how hard their images were for the kept, and below the last of the best `keep`. NaN for
    those that failed."""
    kept: tuple[Arch, ...]
    """The candidates that were scored on all images, best first; ties go to the earlier one."""
    looks: tuple[tuple[int, int], ...]
    """How many images had been seen at each look, and how many candidates were left after it."""
    images: int
    """Validation images evaluated, each counted for every candidate that saw it."""
    images_in_full: int
    """The same had every candidate been scored on all images."""
    error_probability: float
    """Probability, at most, that the mean accuracy of the best `keep` is lower by more than the tolerance than without
    dropping any; 0 where none was dropped."""


class _Risk(NamedTuple):
    """The probability of a cost above the tolerance, and the expected cost."""

    probability: float
    expected_cost: float


def race(
    archs: Sequence[Arch],
    correct: Callable[[Sequence[Arch], Ints], Hits],
    images: int,
    *,
    keep: int = 5,
    error_probability: float = 0.05,
    tolerance: float = 0.001,
    looks: Sequence[float] = LOOKS,
    seed: int = 0,
) -> Race:
    """Score candidates on validation images, and drop each once it hardly can be among the best `keep`.

    `correct(archs, indices)` returns, for each of some candidates, which of the images at some sorted indices in
    [0, `images`) it gets right, bool (indices,), or None where it failed. It is asked for those that are left, of
    images that they have not seen. Who fails is out; where fewer than `keep` are left at the end, the best of those
    that were dropped are scored on all images after all. `seed` decides the order of images; give every generation its
    own, for candidates bred from earlier scores are no longer independent of an order.

    The best `keep` of those that are scored on all images have, but for an `error_probability`, a mean accuracy of at
    most `tolerance` below that of the true best, those that would be best over all images. The probability is that of
    the normal distribution that the images seen leave, not a bound for any finite number of them. With fewer than
    1,000 images, or no more candidates than are kept, this is plain evaluation. `looks` are shares of the images, in
    growing order. Raises ValueError for arguments that do not fit, and where `correct` returns something else.
    """
    archs = tuple(archs)
    _check(archs, images, keep, error_probability, tolerance, looks)
    racing = images >= FEWEST_IMAGES and len(archs) > keep
    sizes = sorted({round(share * images) for share in looks} - {0, images}) if racing else []
    rng = np.random.default_rng(seed)
    order = rng.permutation(images)
    hits = np.zeros((len(archs), images), bool)  # columns in the order of evaluation
    seen = np.zeros(len(archs), np.int64)
    failed = np.zeros(len(archs), bool)
    left, done, used = np.arange(len(archs)), [], 0

    def evaluate(candidates: Ints, upto: int) -> Ints:
        """Return those that have now seen so many images; all must have seen as many as each other before."""
        nonlocal used
        columns = np.arange(seen[candidates[0]], upto)
        columns = columns[np.argsort(order[columns])]
        found = correct([archs[i] for i in candidates.tolist()], order[columns])
        for i, row in zip(candidates.tolist(), _checked(found, len(candidates), len(columns)), strict=True):
            failed[i] = row is None
            if row is not None:
                hits[i, columns] = row
        seen[candidates] = upto
        used += len(candidates) * len(columns)
        return candidates[~failed[candidates]]

    spent = _Risk(0.0, 0.0)
    for look, size in enumerate(sizes, 1):
        if len(left) <= keep:
            break
        left = evaluate(left, size)
        if len(left) <= keep:
            break
        ranked = left[np.argsort(-hits[left, :size].sum(axis=1), kind="stable")]
        share = look / len(sizes)
        allowed = _Risk(share * error_probability, share * _EXPECTED * tolerance)
        fewest, spent = _fewest(hits[ranked, :size], images, keep, tolerance, spent, allowed, rng)
        left = np.sort(ranked[:fewest])
        done.append((size, len(left)))
    left = evaluate(left, images) if len(left) else left
    while len(left) < keep and (dropped := np.flatnonzero(~failed & (seen < images))).size:
        best = dropped[np.argmax([hits[i, : seen[i]].mean() for i in dropped])]
        left = np.sort(np.append(left, evaluate(np.array([best]), images)))
    scores = _scores(hits, seen, failed, left, keep)
    best_first = sorted(left.tolist(), key=lambda i: -scores[i])
    return Race(
        scores=dict(zip(archs, scores.tolist(), strict=True)),
        kept=tuple(archs[i] for i in best_first),
        looks=tuple(done),
        images=used,
        images_in_full=images * len(archs),
        error_probability=error_probability if len(left) < len(archs) else 0.0,
    )


def _check(
    archs: Sequence[Arch], images: int, keep: int, error_probability: float, tolerance: float, looks: Sequence[float]
) -> None:
    distinct = len(set(archs))
    if not 0 < distinct == len(archs):
        raise ValueError(f"a race needs candidates that differ, but got {len(archs)}, {distinct} of them distinct")
    if images < 1:
        raise ValueError(f"a race needs at least one image, but got {images}")
    if keep < 1:
        raise ValueError(f"at least one candidate must be kept, but got keep={keep}")
    if not 0 < error_probability < 1:
        raise ValueError(f"`0 < error_probability < 1` must hold, but got {error_probability}")
    if not 0 < tolerance < 1:
        raise ValueError(f"the tolerance is an accuracy between 0 and 1, 0.001 for 0.1 points, but got {tolerance}")
    if list(looks) != sorted(set(looks)) or not all(0 < share < 1 for share in looks):
        raise ValueError(f"looks must be growing shares of the images between 0 and 1, but got {tuple(looks)}")


def _checked(found: Hits, candidates: int, images: int) -> Hits:
    if len(found) != candidates:
        raise ValueError(f"`correct` must return hits for {candidates} candidates, but returned {len(found)}")
    for row in found:
        if row is not None and (row.dtype != np.bool_ or row.shape != (images,)):
            raise ValueError(f"`correct` must return {images} bools each, but returned {row.dtype} {row.shape}")
    return found


def _fewest(
    hits: Bools, images: int, keep: int, tolerance: float, spent: _Risk, allowed: _Risk, rng: np.random.Generator
) -> tuple[int, _Risk]:
    """Return to how few of some candidates, best first, they can be cut, and the risk spent with that."""
    draws = _drawn_accuracies(hits, images, rng)
    best = _mean_of_top(draws, keep)

    def risk(left: int) -> _Risk:
        cost = best - _mean_of_top(draws[:, :left], keep)
        above = float(np.mean(cost > tolerance - spent.expected_cost))
        return _Risk(spent.probability + above, spent.expected_cost + float(np.mean(cost)))

    fewest, enough = keep, len(hits)  # the risk falls with the number that is left
    while fewest < enough:
        middle = (fewest + enough) // 2
        found = risk(middle)
        if found.probability <= allowed.probability and found.expected_cost <= allowed.expected_cost:
            enough = middle
        else:
            fewest = middle + 1
    return fewest, risk(fewest)


def _drawn_accuracies(hits: Bools, images: int, rng: np.random.Generator) -> Floats:
    """Draw the accuracies over all images (draws, candidates) that may stand behind the hits seen, less their mean."""
    candidates, size = hits.shape
    seen = hits.mean(axis=1)
    seen -= seen.mean()
    own = np.eye(candidates) / size  # one more image that each alone gets right or wrong: equals may come to differ
    covariance = (np.cov(hits.astype(np.float64)) + own) / size * (1 - size / images)
    noise = rng.standard_normal((_DRAWS, candidates)) @ np.linalg.cholesky(covariance).T
    noise -= noise.mean(axis=1, keepdims=True)
    from_noise = (np.trace(covariance) - covariance.sum() / candidates) / (candidates - 1)
    middle = np.subtract(*np.quantile(seen, (0.75, 0.25))) / 1.349  # an outlier says nothing of how the others differ
    spread = min(seen.var(ddof=1), middle**2)
    real = max(_LEAST_SPREAD, 1 - from_noise / spread) if spread else _LEAST_SPREAD
    return real * seen + np.sqrt(real) * noise


def _mean_of_top(draws: Floats, keep: int) -> Floats:
    return np.partition(draws, draws.shape[1] - keep, axis=1)[:, -keep:].mean(axis=1)


def _scores(hits: Bools, seen: Ints, failed: Bools, kept: Ints, keep: int) -> Floats:
    """Return the accuracies of the kept, estimates for those that were dropped, and NaN for those that failed."""
    scores = np.array([row[:size].mean() for row, size in zip(hits, seen.tolist(), strict=True)])
    scores[failed] = np.nan
    worst = np.sort(scores[kept])[::-1][:keep][-1] if len(kept) else 0.0
    for i in np.setdiff1d(np.flatnonzero(~failed), kept):
        easier = hits[kept, : seen[i]].mean() - hits[kept].mean()
        scores[i] = np.clip(scores[i] - easier, 0.0, max(0.0, worst - 1 / hits.shape[1]))  # one image behind at least
    return scores
