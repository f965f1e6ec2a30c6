"""Agreement of rankings, held to scipy, to regression residuals and to brute force."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from nasx.comparison import Interval
from nasx.ranking import RankAgreement, advice, rank_agreement, verdict

Floats = NDArray[np.float64]

ACCURACIES = np.arange(1.0, 31.0)


def sample(n: int, seed: int, levels: int | None = None) -> tuple[Floats, Floats, Floats]:
    """Scores, accuracies and costs that depend on each other; with levels, coarse enough to tie."""
    rng = np.random.default_rng(seed)
    accuracy = rng.normal(size=n)
    cost = 0.5 * accuracy + rng.normal(size=n)
    score = accuracy + 0.5 * cost + rng.normal(size=n)
    if levels is None:
        return score, accuracy, cost
    coarse = [np.floor(levels * stats.norm.cdf(x)) for x in (score, accuracy, cost)]
    return coarse[0], coarse[1], coarse[2]


def residual_correlation(score: Floats, cost: Floats, accuracy: Floats) -> float:
    """Pearson's correlation of what the ranks of accuracy leave unexplained of the ranks of score and of cost."""
    ranks = [stats.rankdata(x) for x in (score, cost, accuracy)]
    design = np.stack([np.ones(len(score)), ranks[2]], axis=1)
    left = [r - design @ np.linalg.lstsq(design, r)[0] for r in ranks[:2]]
    return float(np.corrcoef(left[0], left[1])[0, 1])


@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
@pytest.mark.parametrize("n", [5, 12, 60])
def test_values_are_scipys_and_the_residuals(n: int, levels: int | None) -> None:
    score, accuracy, cost = sample(n, seed=n, levels=levels)
    found = rank_agreement(score, accuracy, cost, resamples=100)
    assert found.architectures == n
    assert found.tau.value == pytest.approx(stats.kendalltau(score, accuracy).statistic)
    assert found.rho.value == pytest.approx(stats.spearmanr(score, accuracy).statistic)
    assert found.size_bias is not None
    assert found.size_bias.value == pytest.approx(residual_correlation(score, cost, accuracy))


@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
def test_intervals_are_those_of_a_slow_bootstrap(levels: int | None) -> None:
    n, resamples, columns = 15, 150, sample(15, seed=3, levels=levels)
    found = rank_agreement(*columns, resamples=resamples, confidence=0.9, seed=11)
    slow: dict[str, list[float]] = {"tau": [], "rho": [], "size_bias": []}
    for copies in np.random.default_rng(11).multinomial(n, [1 / n] * n, size=resamples):
        score, accuracy, cost = (np.repeat(column, copies) for column in columns)
        slow["tau"].append(stats.kendalltau(score, accuracy).statistic)
        slow["rho"].append(stats.spearmanr(score, accuracy).statistic)
        slow["size_bias"].append(residual_correlation(score, cost, accuracy))
    for name, values in slow.items():
        interval = getattr(found, name)
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95]))), name
        assert interval.undefined == 0


def test_a_perfect_ranking_is_trustworthy() -> None:
    found = rank_agreement(np.exp(ACCURACIES), ACCURACIES, top_k=(1, 3))
    for interval in (found.tau, found.rho):
        assert (interval.value, interval.low, interval.high) == pytest.approx((1, 1, 1))
    assert found.regret == {1: 0, 3: 0}
    assert found.size_bias is None
    assert verdict(found).startswith("Trustworthy: the supernet orders about 100 % of pairs")
    assert "the best of its top 3 is the best of all" in verdict(found)


def test_a_reversed_ranking_is_called_so() -> None:
    found = rank_agreement(-ACCURACIES, ACCURACIES)
    for interval in (found.tau, found.rho):
        assert (interval.value, interval.low, interval.high) == pytest.approx((-1, -1, -1))
    assert found.regret == {1: 29, 5: 25}
    assert verdict(found).startswith("Reversed: ")


def test_an_independent_ranking_is_none() -> None:
    found = rank_agreement(np.random.default_rng(0).normal(size=30), ACCURACIES)
    assert not found.tau.excludes(0)
    assert not found.rho.excludes(0)
    assert verdict(found).startswith("No evidence of a ranking: ")


def test_a_middling_ranking_is_weak() -> None:
    found = rank_agreement(ACCURACIES + np.random.default_rng(1).normal(scale=10, size=30), ACCURACIES)
    assert 0 < found.tau.low < 0.5
    assert verdict(found).startswith("Weak: ")


def test_few_architectures_are_never_trustworthy() -> None:
    few, enough = (verdict(rank_agreement(ACCURACIES[:n], ACCURACIES[:n])) for n in (9, 10))
    assert few.startswith("Weak: ")
    assert "at least 10 architectures" in few
    assert enough.startswith("Trustworthy: ")


@pytest.mark.parametrize(("sign", "favoured"), [(1, "costly"), (-1, "cheap")])
def test_a_planted_size_bias_is_found(sign: int, favoured: str) -> None:
    rng = np.random.default_rng(5)
    cost = rng.uniform(1e8, 2e9, size=40)
    accuracy = cost / 1e9 + rng.normal(size=40)
    score = accuracy + sign * cost / 1e9 + rng.normal(scale=0.3, size=40)
    found = rank_agreement(score, accuracy, cost)
    assert found.size_bias is not None
    assert found.size_bias.excludes(0)
    assert np.sign(found.size_bias.value) == sign
    assert f"It favours {favoured} architectures" in verdict(found)


def test_accuracy_that_grows_with_cost_is_no_bias() -> None:
    rng = np.random.default_rng(7)
    cost = rng.uniform(size=60)
    accuracy = 3 * cost + rng.normal(size=60)
    score = accuracy + rng.normal(scale=0.5, size=60)
    assert stats.spearmanr(score, cost).pvalue < 1e-3
    found = rank_agreement(score, accuracy, cost)
    assert found.size_bias is not None
    assert not found.size_bias.excludes(0)
    assert "favours" not in verdict(found)


@pytest.mark.parametrize("cost", [np.ones(30), ACCURACIES**2, -ACCURACIES], ids=["constant", "same", "reversed"])
def test_a_bias_that_cannot_be_known_is_none(cost: Floats) -> None:
    score = ACCURACIES + np.random.default_rng(1).normal(scale=10, size=30)
    assert rank_agreement(score, ACCURACIES, cost, resamples=100).size_bias is None


def test_constant_resamples_count_against_certainty_and_are_said() -> None:
    score = [0.1, 0.1, 0.1, 0.1, 0.1, 0.7]
    accuracy = [0.5, 0.6, 0.4, 0.3, 0.2, 0.9]
    found = rank_agreement(score, accuracy, resamples=1000)
    copies = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, size=1000)
    constant = int(((copies[:, 5] == 0) | (copies[:, 5] == 6)).sum())
    assert found.tau.undefined == found.rho.undefined == constant > 50
    assert (found.tau.low, found.tau.high) == (found.rho.low, found.rho.high) == (-1, 1)
    assert f"{constant} of 1000 resamples undefined" in verdict(found)
    assert verdict(found).startswith("No evidence of a ranking: ")


def test_a_rare_undefined_resample_hardly_matters() -> None:
    found = rank_agreement([0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6, 7])
    assert 0 < found.tau.undefined < 40
    assert found.tau.low > 0


def test_the_seed_decides() -> None:
    columns = sample(20, seed=2)
    assert rank_agreement(*columns, seed=4) == rank_agreement(*columns, seed=4)
    assert rank_agreement(*columns, seed=4).tau != rank_agreement(*columns, seed=5).tau


def test_more_confidence_is_wider() -> None:
    columns = sample(20, seed=2)
    narrow, wide = (rank_agreement(*columns, confidence=c).tau for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_intervals_cover_the_truth(correlation: float) -> None:
    tau = 2 / np.pi * np.arcsin(correlation)  # of normal variables, exactly
    rho = 6 / np.pi * np.arcsin(correlation / 2)
    rng = np.random.default_rng(0)
    covered = np.zeros(3)
    for seed in range(200):
        accuracy, noise, cost = rng.normal(size=(3, 30))
        score = correlation * accuracy + np.sqrt(1 - correlation**2) * noise
        found = rank_agreement(score, accuracy, cost, resamples=300, seed=seed)
        assert found.size_bias is not None
        covered += [not found.tau.excludes(tau), not found.rho.excludes(rho), not found.size_bias.excludes(0)]
    assert (covered / 200 > 0.88).all()
    assert (covered / 200 < 0.995).all()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=5, max_size=8), st.integers(1, 5))
def test_regret_is_the_worst_of_all_ways_to_break_ties(pairs: list[tuple[int, int]], k: int) -> None:
    scores, accuracies = zip(*pairs, strict=True)
    assume(len(set(scores)) > 1 and len(set(accuracies)) > 1)
    regrets = []
    for picked in itertools.combinations(range(len(pairs)), k):
        others = [pairs[i][0] for i in range(len(pairs)) if i not in picked]
        if min(pairs[i][0] for i in picked) >= max(others, default=-1):
            regrets.append(max(a for _, a in pairs) - max(pairs[i][1] for i in picked))
    assert rank_agreement(scores, accuracies, top_k=[k], resamples=100).regret == {k: max(regrets)}
    assert rank_agreement(scores, accuracies, top_k=k, resamples=100).regret == {k: max(regrets)}


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([None, 3]))
def test_only_ranks_and_not_the_order_given_matter(seed: int, levels: int | None) -> None:
    score, accuracy, cost = sample(25, seed, levels)
    found = rank_agreement(score, accuracy, cost, resamples=100)
    scaled = rank_agreement(np.exp(score), accuracy * 4, cost**3, resamples=100)
    assert (scaled.tau, scaled.rho, scaled.size_bias) == (found.tau, found.rho, found.size_bias)
    shuffled = np.random.default_rng(seed).permutation(25)
    moved = rank_agreement(score[shuffled], accuracy[shuffled], cost[shuffled], resamples=100)
    assert moved.regret == found.regret
    for name in ("tau", "rho", "size_bias"):
        assert getattr(moved, name).value == pytest.approx(getattr(found, name).value)


def test_verdicts_are_two_or_three_sentences() -> None:
    for tau, bias in itertools.product([(0.8, 0.7, 0.9), (0.3, 0.1, 0.5), (0, -0.2, 0.2), (-0.5, -0.7, -0.3)], [0, 1]):
        size_bias = Interval(0.5, 0.3, 0.7) if bias else Interval(0.1, -0.1, 0.3)
        agreement = RankAgreement(
            20, Interval(*tau), Interval(*tau), {1: 1.5, 5: 0.25}, size_bias, confidence=0.95, resamples=2000
        )
        text = verdict(agreement)
        assert len(re.findall(r"\.(?= |$)", text)) == 2 + bias
        assert f"{tau[0]:.2f}, 95 % interval {tau[1]:.2f} to {tau[2]:.2f}" in text
        assert "the best of its top 5 is 0.25 less accurate" in text


def trained(n: int, reliability: float, merit_seen: float, seed: int) -> tuple[Floats, Floats, Floats]:
    """Supernet scores and accuracies of two trainings, given how much of either is the true merit (correlations)."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    score = merit_seen * truth + np.sqrt(1 - merit_seen**2) * rng.normal(size=n)
    noise = np.sqrt(1 / reliability - 1)
    first, second = (truth + noise * rng.normal(size=n) for _ in range(2))
    return score, first, second


def of_trained(*arguments: float, resamples: int = 200) -> RankAgreement:
    score, first, second = trained(*arguments)  # type: ignore[arg-type]
    return rank_agreement(score, first, second_accuracies=second, resamples=resamples)


def test_the_ceiling_is_the_tau_of_two_trainings_and_the_rest_is_about_their_mean() -> None:
    score, first, second = trained(30, 0.5, 0.8, seed=1)
    found = rank_agreement(score, first, second_accuracies=second, resamples=150, confidence=0.9, seed=11)
    mean = (first + second) / 2
    alone = rank_agreement(score, mean, resamples=150, confidence=0.9, seed=11)
    assert (found.tau, found.rho, found.regret) == (alone.tau, alone.rho, alone.regret)
    assert found.ceiling is not None
    assert found.ceiling.value == pytest.approx(stats.kendalltau(first, second).statistic)
    slow = [
        stats.kendalltau(np.repeat(first, copies), np.repeat(second, copies)).statistic
        for copies in np.random.default_rng(11).multinomial(30, [1 / 30] * 30, size=150)
    ]
    assert (found.ceiling.low, found.ceiling.high) == pytest.approx(tuple(np.quantile(slow, [0.05, 0.95])))
    assert alone.ceiling is alone.corrected is None


@pytest.mark.parametrize(("reliability", "merit_seen"), [(0.5, 0.8), (0.3, 0.6), (0.8, 0.3), (0.4, 0.0)])
def test_the_corrected_tau_is_the_one_without_noise(reliability: float, merit_seen: float) -> None:
    expected = 2 / np.pi * np.arcsin(merit_seen)
    corrected, plain, covered = [], [], 0
    for seed in range(60):
        found = of_trained(60, reliability, merit_seen, seed)
        plain.append(found.tau.value)
        if found.corrected is not None:  # two of 60 of the noisiest trainings disagree by chance
            corrected.append(found.corrected.value)
            covered += not found.corrected.excludes(expected)
    assert len(corrected) >= 58
    assert np.median(corrected) == pytest.approx(expected, abs=0.04)
    if merit_seen and reliability < 0.6:
        assert np.median(plain) < expected - 0.05
    assert covered >= 0.87 * len(corrected)  # with intervals of 95 %


def test_trainings_that_do_not_agree_leave_nothing_to_correct() -> None:
    first = np.arange(10.0)
    found = rank_agreement(np.roll(first, 1), first, second_accuracies=-(first**2), resamples=100)
    assert found.ceiling is not None
    assert found.ceiling.value == pytest.approx(-1)
    assert found.corrected is None
    assert advice(found) == "flat"


@pytest.mark.parametrize(
    ("reliability", "merit_seen", "expected", "words"),
    [
        (0.95, 0.99, "choose", "Choose by it"),
        (0.55, 0.95, "train networks", "Spend on real training"),
        (0.95, 0.5, "train supernet", "Train the supernet longer: until then"),
        (0.95, 0.0, "train supernet", "Train the supernet longer, or judge by training networks alone"),
        (0.02, 0.9, "flat", "This space is flat"),
    ],
)
def test_the_advice_tells_what_to_do(reliability: float, merit_seen: float, expected: str, words: str) -> None:
    found = of_trained(60, reliability, merit_seen, 3, resamples=500)
    assert advice(found) == expected
    text = verdict(found)
    assert words in text
    assert found.ceiling is not None
    assert f"Two trainings with different seeds agree by a tau of {found.ceiling.value:.2f}" in text
    if found.corrected is not None:
        assert f"without their noise the supernet's would be {found.corrected.value:.2f}" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second_accuracies": [1, 2]}, "6 supernet_scores and 2 second_accuracies"),
        ({"second_accuracies": [0.1] * 6}, "second_accuracies must tell .* all 6 are 0.1"),
        ({"second_accuracies": [1, 2, 3, 4, 5, float("nan")]}, "second_accuracies must be finite, but got nan"),
        ({"supernet_scores": [1, 2, 3]}, "3 supernet_scores and 6 accuracies"),
        ({"costs": [1, 2]}, "6 supernet_scores and 2 costs"),
        ({"supernet_scores": [1, 2, 3, 4], "accuracies": [1, 2, 3, 4]}, "at least 5 architectures, but got 4"),
        ({"supernet_scores": [], "accuracies": []}, "at least 5 architectures, but got 0"),
        ({"supernet_scores": [1, 2, float("nan"), 4, 5, 6]}, "supernet_scores must be finite, but got nan at index 2"),
        ({"accuracies": [1, 2, 3, 4, 5, float("nan")]}, "accuracies must be finite, but got nan at index 5"),
        ({"costs": [float("inf"), 2, 3, 4, 5, 6]}, "costs must be finite, but got inf at index 0"),
        ({"accuracies": [[1, 2, 3, 4, 5, 6]]}, r"accuracies must hold one number .* shape \(1, 6\)"),
        ({"supernet_scores": [0.1] * 6}, "supernet_scores must tell .* all 6 are 0.1"),
        ({"accuracies": [0.1] * 6}, "accuracies must tell .* all 6 are 0.1"),
        ({"second_accuracies": [6, 5, 4, 3, 2, 1]}, "the means of accuracies and second_accuracies .* all 6 are 3.5"),
        ({"top_k": [0]}, "`1 <= k <= 6`.* got 0"),
        ({"top_k": [1, 7]}, "`1 <= k <= 6`.* got 7"),
        ({"confidence": 95}, "`0 < confidence < 1` must hold, but got 95"),
        ({"resamples": 10}, "at least 100 resamples, but got 10"),
    ],
)
def test_refusals_name_the_value_and_the_rule(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"supernet_scores": [1, 3, 2, 4, 6, 5], "accuracies": [1, 2, 3, 4, 5, 6]}
    with pytest.raises(ValueError, match=message):
        rank_agreement(**(arguments | change))  # type: ignore[arg-type]


def test_importing_nasx_loads_no_scipy() -> None:
    code = "import nasx, sys; sys.exit(any(m.split('.')[0] in ('scipy', 'torch') for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
