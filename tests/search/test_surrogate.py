import math

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from nasx import Arch, Space, one_of, repeat
from nasx.search import RandomSearch, Searcher, Surrogate, SurrogateSearch
from nasx.space import ArchSet
from nasx.testing import SearcherContract

SPACE = Space(block=repeat(Space(op=one_of("a", "b", "c"), width=one_of(1, 2, 4)), 6))  # 531,441 architectures


class TestSurrogateSearch(SearcherContract):
    def make_searcher(self, space: ArchSet, seed: int) -> Searcher:
        return SurrogateSearch(space, evaluations=40, batch=10, pool=100, seed=seed)


def truth(seed: int = 0) -> dict[tuple[str, object], float]:
    rng = np.random.default_rng(seed)
    return {(name, value): rng.normal() for name, choice in SPACE.walk() for value in choice.values}


def score(arch: Arch, seed: int = 0) -> float:
    share = truth(seed)
    return 70 + sum(share[pair] for pair in arch.items())


def some(n: int, seed: int, noise: float = 0.0) -> dict[Arch, float]:
    rng = np.random.default_rng([seed, 1])
    return {arch: score(arch) + noise * rng.normal() for arch in SPACE.sample(seed, n)}


def one_hot(archs: list[Arch]) -> np.ndarray:
    pairs = [(name, value) for name, choice in SPACE.walk() for value in choice.values]
    return np.array([[float(arch[name] == value) for name, value in pairs] for arch in archs])


@pytest.mark.parametrize("n", [8, 30, 200])
def test_predictions_are_those_of_ridge_regression_with_the_best_penalty(n: int) -> None:
    scores, others = some(n, seed=1, noise=0.5), list(SPACE.sample(2, 20))
    model = Surrogate(scores)
    inputs, values = one_hot(list(scores)), list(scores.values())
    ridge = Ridge(alpha=model.strength).fit(inputs, values)
    if n == 200:  # fewer hold not every value of every choice, of which a new one is worth the mean here too
        assert model.predict(others)[0] == pytest.approx(ridge.predict(one_hot(others)))
    assert model.predict(list(scores))[0] == pytest.approx(ridge.predict(inputs))
    best = RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(inputs, values)
    assert model.strength == pytest.approx(best.alpha_)


def test_the_noise_is_that_of_architectures_left_out() -> None:
    assert Surrogate(some(400, seed=1, noise=0.5)).noise == pytest.approx(0.5, rel=0.1)


def test_little_is_sure_of_what_was_seldom_seen() -> None:
    seen = {arch: value for arch, value in some(300, seed=1, noise=0.5).items() if arch["block.0.op"] != "c"}
    known, unknown = (SPACE.pin({"block.0.op": op})[0] for op in ("a", "c"))
    _, (sure, unsure) = Surrogate(seen).predict([known, unknown])
    assert unsure > 2 * sure


def test_draws_have_the_mean_and_deviation_that_is_predicted() -> None:
    model, archs = Surrogate(some(40, seed=1, noise=0.5)), list(SPACE.sample(2, 5))
    drawn = model.sample(archs, np.random.default_rng(0), 20_000)
    mean, deviation = model.predict(archs)
    assert drawn.shape == (20_000, 5)
    assert drawn.mean(axis=0) == pytest.approx(mean, abs=0.05 * deviation.max())
    assert drawn.std(axis=0) == pytest.approx(deviation, rel=0.05)


def finish(searcher: Searcher, seed: int, noise: float) -> float:
    rng = np.random.default_rng(seed)
    while not searcher.done:
        searcher.tell({arch: score(arch, seed) + noise * rng.normal() for arch in searcher.ask()})
    return max(score(scored.arch, seed) for scored in searcher.history)


def test_it_finds_in_few_scores_what_random_search_does_not() -> None:
    gained = []
    for seed in range(5):
        modelled = finish(SurrogateSearch(SPACE, evaluations=60, seed=seed), seed, noise=0.5)
        drawn = finish(RandomSearch(SPACE, evaluations=60, batch=10, seed=seed), seed, noise=0.5)
        gained.append(modelled - drawn)
    assert min(gained) > 1  # of a standard deviation of about three


@pytest.mark.parametrize(("count", "score"), [(0, 1.0), (3, 1.0), (9, math.nan)])
def test_too_few_or_broken_scores_make_no_model(count: int, score: float) -> None:
    with pytest.raises(ValueError, match="at least 4 finite scores"):
        Surrogate(dict.fromkeys(SPACE.sample(0, count), score))


def test_scores_that_are_all_equal_are_a_model_of_one_number() -> None:
    mean, deviation = Surrogate(dict.fromkeys(SPACE.sample(0, 9), 1.0)).predict([SPACE[0]])
    assert (mean[0], deviation[0]) == pytest.approx((1, 0))


@pytest.mark.parametrize(("change", "message"), [({"batch": 0}, "batch needs"), ({"pool": 3}, "pool=3, batch=10")])
def test_settings_without_a_meaning_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SurrogateSearch(SPACE, **change)
