"""Intervals and differences, held to scipy, to published examples and to simulation."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from nasx.comparison import accuracy_interval, paired_difference, score_interval

Floats = NDArray[np.float64]


def hits(right: int, wrong: int) -> Floats:
    return np.repeat([1.0, 0.0], [right, wrong])


def test_accuracies_have_wilsons_interval() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263 and 15 of 148
    for right, samples, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = accuracy_interval(right, samples)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
        assert found.value == right / samples
        assert score_interval(hits(right, samples - right)) == found


def test_scores_have_a_bootstraps_interval() -> None:
    scores = np.random.default_rng(0).exponential(size=300)
    found = score_interval(scores, resamples=5_000)
    # from the same draws, so that neither chance nor a release of scipy that draws otherwise decides
    draws = np.random.default_rng(0)
    bootstrap = stats.bootstrap((scores,), np.mean, n_resamples=5_000, method="percentile", random_state=draws)
    reference = bootstrap.confidence_interval
    assert found.value == scores.mean()
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.01)
    assert score_interval(scores, seed=1) == score_interval(scores, seed=1) != score_interval(scores, seed=2)


def test_few_scores_have_students_interval() -> None:
    scores = [0.1, 0.35, 0.2, 0.4, 0.5]
    reference = stats.ttest_1samp(scores, 0).confidence_interval(0.9)
    found = score_interval(scores, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))


def answers(both: int, first: int, second: int, neither: int) -> tuple[Floats, Floats]:
    one = np.repeat([1.0, 1.0, 0.0, 0.0], [both, first, second, neither])
    return one, np.repeat([1.0, 0.0, 1.0, 0.0], [both, first, second, neither])


def test_differences_of_hits_have_agresti_and_mins_interval() -> None:
    # by their formula: half a sample added to each of the four outcomes
    found = paired_difference(*answers(794, 150, 86, 570))
    adjusted, error = 64 / 1602, np.sqrt(150.5 + 86.5 - 64**2 / 1602) / 1602
    assert found.value == pytest.approx(64 / 1600)
    assert (found.low, found.high) == pytest.approx((adjusted - 1.959964 * error, adjusted + 1.959964 * error))
    assert found.of_hits


@given(st.integers(0, 12), st.integers(0, 12))
def test_few_images_that_differ_show_what_the_exact_test_shows(first: int, second: int) -> None:
    found = paired_difference(*answers(900, first, second, 100))
    exact = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    if exact > 0.1:
        assert not found.shown
    if exact < 0.01:
        assert found.shown
    assert found.low <= found.value <= found.high


def test_pairs_show_what_intervals_side_by_side_do_not() -> None:
    first, second = answers(800, 40, 15, 145)
    assert paired_difference(first, second).shown
    assert score_interval(first).low < score_interval(second).high


@pytest.mark.parametrize("kind", ["hits", "scores", "seeds"])
def test_intervals_cover_the_true_difference(kind: str) -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        if kind == "hits":
            outcome = rng.choice(4, size=400, p=[0.8, 0.06, 0.03, 0.11])
            found = paired_difference(outcome < 2, (outcome == 0) | (outcome == 2))
        else:
            n = 400 if kind == "scores" else 5
            common = rng.normal(size=n)
            found = paired_difference(common + rng.normal(size=n) + 0.03, common + rng.normal(size=n), resamples=400)
        covered += found.low <= 0.03 <= found.high
    assert 0.92 <= covered / 300 <= 0.98


def test_what_is_no_difference_is_called_so() -> None:
    same = paired_difference(*answers(800, 20, 18, 162))
    text = same.sentence("searched", "random")
    assert text.startswith("searched and random: no difference that this data can show (+0.2 points, 95 % interval -")
    assert text.endswith("; 1,000 compared)")
    better = paired_difference(*answers(800, 60, 18, 122)).sentence("searched", "random")
    assert re.match(r"searched is better than random \(\+4.2 points, 95 % interval \+2.\d+ to \+5.\d+;", better)
    worse = paired_difference([0.5, 0.6, 0.55], [1.5, 1.7, 1.6]).sentence("first", "second")
    assert worse.startswith("first is worse than second (-1.05, 95 % interval -1.17 to -0.926; 3 compared)")


def test_equal_networks_differ_by_nothing() -> None:
    scores = np.random.default_rng(0).normal(size=100)
    for column in (scores, hits(60, 40)):
        found = paired_difference(column, column)
        assert found.value == 0
        assert not found.shown


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy_interval(5, 4), "hits=5, samples=4"),
        (lambda: accuracy_interval(0, 0), "samples >= 1"),
        (lambda: accuracy_interval(1, 4, confidence=95), "confidence < 1` must hold, but got 95"),
        (lambda: accuracy_interval(3.5, 10), "`hits` must be a whole number, but got 3.5"),  # type: ignore[arg-type]
        (lambda: accuracy_interval(3, 9.5), "`samples` must be a whole number, but got 9.5"),  # type: ignore[arg-type]
        (lambda: score_interval([0.5]), "at least 2 values, but got 1"),
        (lambda: score_interval([1.0]), "at least 2 values, but got 1"),
        (lambda: paired_difference([0.5], [0.2]), "at least 2 values, but got 1"),
        (lambda: paired_difference([1.0], [0.0]), "at least 2 values, but got 1"),
        (lambda: score_interval([]), r"one number per sample, but got shape \(0,\)"),
        (lambda: score_interval([0.5, float("nan")]), "must be finite, but got nan at index 1"),
        (lambda: score_interval(np.linspace(0, 1, 50), resamples=10), "at least 100 resamples"),
        (lambda: paired_difference([1, 0], [1, 0, 1]), "but got 2 and 3"),
    ],
)
def test_what_cannot_be_compared_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
