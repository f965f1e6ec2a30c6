"""Whether a supernet's ranking can be trusted: agreement with accuracies of networks trained alone, with intervals.

The bootstrap resamples architectures. A resample is held as the number of copies of each architecture, so that with
the signs of all pairwise differences every statistic of every resample is a matrix product. Time grows with resamples
times the square of the number of architectures: a second for a thousand.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nasx.comparison import Interval

Floats = NDArray[np.float64]

FEWEST = 5
"""Architectures without which no ranking is judged."""
ENOUGH = 10
"""Architectures from which on 95 % intervals cover normal data 93 to 97 % of the time; with 5, tau's and rho's cover
as little as 85 %."""
TRUSTWORTHY = 0.5
"""Kendall's tau that a trustworthy ranking's lower end reaches: three pairs in four in the right order."""
NEAR = 0.8
"""Share of the ceiling's tau from which on a supernet ranks about as well as one training of each network does."""

Advice = Literal["choose", "train supernet", "train networks", "flat"]
"""What to do: choose by the ranking, train the supernet longer, spend on training networks alone, or neither, because
the architectures hardly differ."""


@dataclass(frozen=True, slots=True)
class RankAgreement:
    """How well supernet scores rank architectures, as `rank_agreement` finds it."""

    architectures: int
    """How many were compared."""
    tau: Interval
    """Kendall's tau-b of supernet score and stand-alone accuracy."""
    rho: Interval
    """Spearman's rho of supernet score and stand-alone accuracy."""
    regret: Mapping[int, float]
    """By k: the best accuracy of all minus the best accuracy among the supernet's top k, in the unit of accuracy."""
    size_bias: Interval | None
    """Partial rank correlation of supernet score and cost given accuracy: above 0 the supernet favours costly
    architectures beyond their merit, below 0 cheap ones. None without costs, and where it is undefined: costs all
    equal, or accuracies that rank exactly as the scores or as the costs do, forwards or backwards."""
    confidence: float
    """Of every interval, in 0..1."""
    resamples: int
    """Of the bootstrap behind every interval."""
    ceiling: Interval | None = None
    """Kendall's tau-b between the accuracies of two trainings of every architecture with different seeds: what one real
    training tells of another. None without a second training."""
    corrected: Interval | None = None
    """`tau` corrected for the noise of the trainings: the estimated tau of supernet score and the accuracy that many
    seeds would have on average. None without a ceiling, and where that is 0 or less."""


def rank_agreement(
    supernet_scores: ArrayLike,
    accuracies: ArrayLike,
    costs: ArrayLike | None = None,
    *,
    second_accuracies: ArrayLike | None = None,
    top_k: Sequence[int] | int = (1, 5),
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> RankAgreement:
    """Return how well the supernet's scores rank n architectures, by their stand-alone accuracies.

    `supernet_scores`, `accuracies` and `costs` have shape (n,), entry i of each being about architecture i; higher
    scores and accuracies are better, and costs are in any unit (MACs). `regret` is given for each of `top_k`. Intervals
    are percentiles over resamples of the n architectures, in which architecture i occurs
    `numpy.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)[:, i]` times. They know only these n: a
    sample in perfect order gets an interval of no width, however small it is.

    `second_accuracies` are those of a second training of each architecture with another seed. Then the statistics are
    about the mean of the two, and `ceiling` and `corrected` say how much of a low tau is noise of the trainings. The
    correction is Spearman's for attenuation, with the reliability of the mean of two trainings (Spearman-Brown), on the
    correlations that correspond to these taus in normal data.

    Among equal scores the less accurate architecture counts as picked first, so that ties never flatter the regret.

    Raises ValueError for lengths that differ, fewer than 5 architectures, a value that is not finite (its index is
    named), scores or accuracies or their means that are all equal, and a `top_k`, `confidence` or `resamples` out of
    range.
    """
    from scipy import stats  # here, because it takes a second to import and recipes import this module

    scores = _column("supernet_scores", supernet_scores)
    accuracy = _column("accuracies", accuracies)
    cost = None if costs is None else _column("costs", costs)
    second = None if second_accuracies is None else _column("second_accuracies", second_accuracies)
    for name, column in (("accuracies", accuracy), ("costs", cost), ("second_accuracies", second)):
        if column is not None and len(column) != len(scores):
            raise ValueError(
                f"every architecture needs a value in each input, but got {len(scores)} supernet_scores and "
                f"{len(column)} {name}; give as many of both, in the same order"
            )
    several = top_k if isinstance(top_k, Iterable) else [top_k]
    n = len(scores)
    if n < FEWEST:
        raise ValueError(f"a ranking is judged by at least {FEWEST} architectures, but got {n}; train more of them")
    first, accuracy = accuracy, accuracy if second is None else (accuracy + second) / 2
    mean = None if second is None else accuracy
    for name, column in (
        ("supernet_scores", scores),
        ("accuracies", first),
        ("second_accuracies", second),
        ("the means of accuracies and second_accuracies", mean),
    ):
        if column is not None and (column == column[0]).all():
            raise ValueError(f"{name} must tell architectures apart, but all {n} are {column[0]:g}; check their source")
    if not 0 < confidence < 1:
        raise ValueError(f"`0 < confidence < 1` must hold, but got {confidence}; 0.95 is usual")
    if resamples < 100:
        raise ValueError(f"an interval needs at least 100 resamples, but got {resamples}; 2000 is usual")

    copies = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples).astype(np.float64)
    of_score, of_accuracy = _signs(scores), _signs(accuracy)

    def interval(value: float, resampled: Floats) -> Interval:
        return _interval(value, resampled, confidence)

    size_bias = None
    if cost is not None:
        of_cost = _signs(cost)
        partial = float(_partial(np.ones((1, n)), of_score, of_cost, of_accuracy)[0])
        if not math.isnan(partial):
            size_bias = interval(partial, _partial(copies, of_score, of_cost, of_accuracy))
    tau, taus = float(stats.kendalltau(scores, accuracy).statistic), _tau(copies, of_score, of_accuracy)
    ceiling = corrected = None
    if second is not None:
        between, betweens = (
            float(stats.kendalltau(first, second).statistic),
            _tau(copies, _signs(first), _signs(second)),
        )
        ceiling = interval(between, betweens)
        value = float(_corrected(np.array([tau]), np.array([between]))[0])
        if not math.isnan(value):
            corrected = interval(value, _corrected(taus, betweens))
    return RankAgreement(
        architectures=n,
        tau=interval(tau, taus),
        rho=interval(float(stats.spearmanr(scores, accuracy).statistic), _rho(copies, of_score, of_accuracy)),
        regret={k: _regret(scores, accuracy, k) for k in map(operator.index, several)},
        size_bias=size_bias,
        confidence=confidence,
        resamples=resamples,
        ceiling=ceiling,
        corrected=corrected,
    )


def advice(agreement: RankAgreement) -> Advice:
    """Return what to do about a supernet's ranking, by the lower ends of an agreement's intervals.

    `agreement` is what `rank_agreement` found:

    - `choose` by it: tau at least 0.5 (three pairs in four), from at least 10 architectures;
    - `flat`: two trainings of the same networks do not agree either;
    - `train networks`: the supernet ranks, and nearly as well as one training of each network does, or nobody knows how
      well that does: more of what is missing comes from training its best alone;
    - `train supernet` longer: it ranks no better than chance, or much worse than one training of each network does.
    """
    tau, ceiling = agreement.tau, agreement.ceiling
    if tau.low >= TRUSTWORTHY and agreement.architectures >= ENOUGH:
        return "choose"
    if ceiling is not None and ceiling.low <= 0:
        return "flat"
    if tau.low > 0 and (ceiling is None or tau.value >= NEAR * ceiling.value):
        return "train networks"
    return "train supernet"


def verdict(agreement: RankAgreement) -> str:
    """Return in a few sentences how good the ranking behind an `agreement` is, and what to do (`advice`).

    Trustworthy means a lower end of Kendall's tau of at least 0.5, whose (1 + tau) / 2 is the share of pairs in the
    right order, from at least 10 architectures; weak means above 0, no evidence 0 or less, and reversed wholly below 0.
    A further sentence names the ceiling where it is known, and one a bias towards costly or cheap architectures where
    the interval of `size_bias` excludes 0.
    """
    tau, n, ceiling = agreement.tau, agreement.architectures, agreement.ceiling
    if tau.low >= TRUSTWORTHY and n >= ENOUGH:
        word = "Trustworthy"
    elif tau.low > 0:
        word = "Weak"
    else:
        word = "Reversed" if tau.high < 0 else "No evidence of a ranking"
    sentences = [
        f"{word}: the supernet orders about {50 * (1 + tau.value):.0f} % of pairs as training each network alone does "
        f"(Kendall's tau {_in_words(tau, agreement)}; {n} architectures)."
    ]
    if ceiling is not None:
        sentence = f"Two trainings with different seeds agree by a tau of {_in_words(ceiling, agreement)}"
        if agreement.corrected is not None:
            sentence += f"; without their noise the supernet's would be {_in_words(agreement.corrected, agreement)}"
        sentences.append(f"{sentence}.")
    sentences.append(f"{_what_to_do(agreement)}.")
    bias = agreement.size_bias
    if bias is not None and bias.excludes(0):
        favoured = "costly" if bias.low > 0 else "cheap"
        sentences.append(
            f"It favours {favoured} architectures beyond what their accuracy earns (partial rank correlation with cost "
            f"{_in_words(bias, agreement)}): compare only architectures of about equal cost."
        )
    return " ".join(sentences)


def _what_to_do(agreement: RankAgreement) -> str:
    match advice(agreement):
        case "choose":
            text = "Choose by it"
        case "flat":
            text = (
                "This space is flat: its networks differ by less than two trainings of one network do, so choose by "
                "cost, search a wider space, or train each network longer"
            )
        case "train networks":
            text = "Spend on real training: let it discard the worst, and train several of its best before choosing"
        case "train supernet":
            text = "Train the supernet longer"
            if agreement.tau.high < 0:
                text = "Check that higher scores mean better, and do not choose by it"
            elif agreement.tau.low <= 0:
                text += ", or judge by training networks alone: do not choose by it"
            else:
                text += ": until then let it discard the worst, and train several of its best before choosing"
    n = agreement.architectures
    if n < ENOUGH:
        text += f"; measure at least {ENOUGH} architectures, for {n} are too few to trust an interval"
    if agreement.regret:
        k = max(agreement.regret)
        picks, regret = "its first choice" if k == 1 else f"the best of its top {k}", agreement.regret[k]
        text += f"; {picks} is {f'{regret:.3g} less accurate than the' if regret else 'the'} best of all"
    return text


def _in_words(interval: Interval, agreement: RankAgreement) -> str:
    text = f"{interval.value:.2f}, {100 * agreement.confidence:g} % interval {interval.low:.2f} to {interval.high:.2f}"
    if interval.undefined:
        text += f", {interval.undefined} of {agreement.resamples} resamples undefined"
    return text


def _column(name: str, values: ArrayLike) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise ValueError(f"{name} must hold one number per architecture, but got shape {column.shape}; flatten it")
    broken = np.flatnonzero(~np.isfinite(column))
    if len(broken):
        at = broken[0]
        raise ValueError(f"{name} must be finite, but got {column[at]} at index {at}; leave that architecture out")
    return column


def _regret(scores: Floats, accuracy: Floats, k: int) -> float:
    if not 1 <= k <= len(scores):
        raise ValueError(f"`1 <= k <= {len(scores)}`, the number of architectures, must hold in top_k, but got {k}")
    picked = np.lexsort((accuracy, -scores))[:k]
    return float(accuracy.max() - accuracy[picked].max())


def _interval(value: float, resampled: Floats, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low = np.quantile(np.nan_to_num(resampled, nan=-1), tail)
    high = np.quantile(np.nan_to_num(resampled, nan=1), 1 - tail)
    return Interval(value, float(low), float(high), int(np.isnan(resampled).sum()))


# Shapes below: copies (R, n), how often each of n architectures occurs in each of R resamples; signs (n, n);
# results (R,), NaN where undefined. All sums are of whole numbers, exact in any order, hence the same on any machine.


def _signs(column: Floats) -> Floats:
    return np.greater.outer(column, column).astype(np.float64) - np.less.outer(column, column)


def _pairs(copies: Floats, signs: Floats) -> Floats:
    return ((copies @ signs) * copies).sum(axis=1)


def _tau(copies: Floats, a: Floats, b: Floats) -> Floats:
    return _ratio(_pairs(copies, a * b), _pairs(copies, a * a) * _pairs(copies, b * b))


def _corrected(taus: Floats, between: Floats) -> Floats:
    """Return what taus with the mean of two trainings would be without noise, given the taus between the two."""
    reliability = np.sin(np.pi / 2 * between)  # of one training; Greiner's relation
    reliability = np.where(reliability > 0, reliability, np.nan)
    reliability = 2 * reliability / (1 + reliability)
    correlation = np.sin(np.pi / 2 * taus) / np.sqrt(reliability)
    return np.asarray(2 / np.pi * np.arcsin(np.clip(correlation, -1, 1)))


def _ranks(copies: Floats, signs: Floats) -> Floats:
    return copies @ signs.T  # twice the centred mid-rank: those below minus those above


def _rho(copies: Floats, a: Floats, b: Floats) -> Floats:
    ranks_a, ranks_b = _ranks(copies, a), _ranks(copies, b)
    spread = (copies * ranks_a**2).sum(axis=1) * (copies * ranks_b**2).sum(axis=1)
    return _ratio((copies * ranks_a * ranks_b).sum(axis=1), spread)


def _partial(copies: Floats, a: Floats, b: Floats, given: Floats) -> Floats:
    ra, rb, rg = (_ranks(copies, signs) for signs in (a, b, given))

    def product(x: Floats, y: Floats) -> Floats:
        return (copies * x * y).sum(axis=1)

    # the partial correlation of ranks, every correlation multiplied by its spreads
    gg, ag, bg = product(rg, rg), product(ra, rg), product(rb, rg)
    left = (product(ra, ra) * gg - ag**2) * (product(rb, rb) * gg - bg**2)
    return _ratio(product(ra, rb) * gg - ag * bg, left)


def _ratio(above: Floats, squared: Floats) -> Floats:
    defined = squared > 0
    result = np.full(len(above), np.nan)
    result[defined] = np.clip(above[defined] / np.sqrt(squared[defined]), -1, 1)
    return result
