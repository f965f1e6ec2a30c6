"""Searchers: what they ask, what they accept, where they end, and that they go on where they stopped."""

import json
import math
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.feasible import Feasible, NoneFound
from nasx.search import Evolution, LocalSearch, ParetoSearch, RandomSearch, Searcher, SurrogateSearch
from nasx.space import ArchSet
from tests.strategies import ToyCost, spaces

CONV = Space(k=one_of(3, 5, 7), expansion=one_of(1, 2, 4))
SPACE = Space(width=one_of(8, 16), block=repeat(Space(op=one_of({"none": None, "conv": CONV})), one_of(4, 6)))
BUDGET = Budget(ToyCost(1, 20), at_least=40, at_most=60)
TINY = Space(block=repeat(Space(w=one_of(0, 1, 2, 3)), 4))  # 256 architectures

Build = Callable[[ArchSet, int, int], Searcher]


def evolution(space: ArchSet, evaluations: int, seed: int) -> Searcher:
    population = math.gcd(evaluations, 20)
    return Evolution(space, population=population, generations=evaluations // population, parents=4, seed=seed)


def random_search(space: ArchSet, evaluations: int, seed: int) -> Searcher:
    return RandomSearch(space, evaluations=evaluations, batch=20, seed=seed)


EVERY = pytest.mark.parametrize("build", [evolution, random_search])


def score(arch: Arch) -> float:
    """A toy score with many ties, so that the order among equals would show."""
    return float(sum(value for value in arch.values() if not isinstance(value, str)) // 8)


def run(searcher: Searcher, scored: Callable[[Arch], float] = score) -> list[tuple[str, float, int]]:
    while not searcher.done:
        searcher.tell({arch: scored(arch) for arch in searcher.ask()})
    return history(searcher)


def history(searcher: Searcher) -> list[tuple[str, float, int]]:
    return [(s.arch.to_json(), s.score, s.generation) for s in searcher.history]


# What is asked


@EVERY
@pytest.mark.parametrize("inside", [False, True])
def test_no_candidate_twice_all_inside_as_many_as_asked(build: Build, inside: bool) -> None:
    space = SPACE.within(BUDGET) if inside else SPACE
    searcher = build(space, 100, 0)
    run(searcher)
    archs = [scored.arch for scored in searcher.history]
    assert len(archs) == len(set(archs)) == 100
    assert all(arch in space for arch in archs)
    assert [arch.to_json() for arch in archs] == [SPACE.canonical(arch).to_json() for arch in archs]
    assert searcher.done
    assert searcher.ask() == []


@EVERY
def test_asking_again_returns_the_same_until_told(build: Build) -> None:
    searcher = build(SPACE, 100, 0)
    assert (searcher.generation, searcher.done) == (-1, False)
    first = searcher.ask()
    assert searcher.ask() == first
    assert len(first) == 20
    searcher.tell(dict.fromkeys(first[5:], 0.5))
    assert searcher.ask() == first[:5]
    assert searcher.generation == 0
    searcher.tell(dict.fromkeys(first[:5], 0.5))
    second = searcher.ask()
    assert searcher.generation == 1
    assert not set(first) & set(second)


@EVERY
def test_evaluations_that_are_no_multiple_of_a_batch_are_met_exactly(build: Build) -> None:
    assert len(run(build(SPACE, 47, 0))) == 47


@EVERY
@pytest.mark.parametrize("evaluations", [1000, 256])
def test_an_exhausted_space_ends_the_search(build: Build, evaluations: int) -> None:
    searcher = build(TINY, evaluations, 0)
    run(searcher)
    assert searcher.done
    assert {scored.arch for scored in searcher.history} == set(TINY)
    assert len(searcher.history) == 256


@EVERY
def test_an_exhausted_budget_ends_the_search(build: Build) -> None:
    inside = TINY.within(Budget(ToyCost(0, 9), at_most=15))
    assert 10 < inside.size < 200
    assert {arch for arch, _, _ in run(build(inside, 400, 0))} == {arch.to_json() for arch in inside}


@settings(max_examples=40)
@given(spaces(max_size=40), st.integers(0, 99), st.integers(1, 60), st.sampled_from([evolution, random_search]))
def test_any_small_space_is_searched_to_its_end(space: Space, seed: int, evaluations: int, build: Build) -> None:
    searcher = build(space, evaluations, seed)
    run(searcher)
    archs = [scored.arch for scored in searcher.history]
    assert len(archs) == len(set(archs)) == min(evaluations, space.size)
    assert set(archs) <= set(space)


@EVERY
def test_the_seed_decides(build: Build) -> None:
    assert run(build(SPACE, 100, 3)) == run(build(SPACE, 100, 3))
    assert run(build(SPACE, 100, 3)) != run(build(SPACE, 100, 4))


@EVERY
def test_the_order_in_which_scores_arrive_does_not_matter(build: Build) -> None:
    ordered, shuffled = build(SPACE, 100, 0), build(SPACE, 100, 0)
    rng = np.random.default_rng(0)
    while not ordered.done:
        asked = ordered.ask()
        assert shuffled.ask() == asked
        ordered.tell({arch: score(arch) for arch in asked})
        for i in rng.permutation(len(asked)):  # one by one, as workers finish
            shuffled.tell({asked[i]: score(asked[i])})
    assert history(shuffled) == history(ordered)
    assert shuffled.best(20) == ordered.best(20)


# What `tell` takes


@EVERY
def test_what_was_not_asked_for_is_refused_and_nothing_recorded(build: Build) -> None:
    searcher = build(SPACE, 100, 0)
    asked = searcher.ask()
    other = next(arch for arch in SPACE if arch not in asked)
    with pytest.raises(ValueError, match=r"not asked for: .*'block\.0\.op'"):
        searcher.tell({asked[0]: 1.0, other: 2.0})
    assert searcher.history == ()
    assert searcher.ask() == asked


@EVERY
def test_another_score_for_the_same_is_refused_and_nothing_recorded(build: Build) -> None:
    searcher = build(SPACE, 100, 0)
    asked = searcher.ask()
    searcher.tell({asked[0]: 1.0, asked[1]: math.nan})
    searcher.tell({asked[0]: 1.0, asked[1]: math.nan})  # the same again is no news
    before = history(searcher)
    for arch, other in ((asked[0], 2.0), (asked[0], math.nan), (asked[1], 0.0)):
        with pytest.raises(ValueError, match=r"scored (1\.0|nan) before and (2\.0|nan|0\.0) now.*'block\.0\.op'"):
            searcher.tell({asked[2]: 5.0, arch: other})
    assert str(history(searcher)) == str(before)
    assert searcher.ask() == asked[2:]


def test_equal_architectures_are_the_same_candidate() -> None:
    searcher = RandomSearch(TINY, evaluations=1)
    (asked,) = searcher.ask()
    searcher.tell({Arch({name: float(asked[name]) for name in reversed(list(asked))}): 1.0})
    assert searcher.done
    assert searcher.history[0].arch.to_json() == asked.to_json()


@EVERY
def test_failed_candidates_rank_last_and_are_counted(build: Build) -> None:
    searcher = build(SPACE, 100, 0)
    failed = {arch.to_json() for arch, _ in zip(searcher.ask(), range(7), strict=False)}
    run(searcher, lambda arch: math.nan if arch.to_json() in failed else -1.0)
    assert searcher.failed == 7
    assert len(searcher.history) == 100
    best = searcher.best(100)
    assert len(best) == 93
    assert not failed & {scored.arch.to_json() for scored in best}


def test_best_is_sorted_and_ties_go_to_the_earlier() -> None:
    searcher = random_search(SPACE, 100, 0)
    run(searcher)
    best = searcher.best(100)
    place = {scored.arch: i for i, scored in enumerate(searcher.history)}
    assert best == sorted(best, key=lambda scored: (-scored.score, place[scored.arch]))
    assert searcher.best() == best[:1]


def test_failed_candidates_are_never_parents() -> None:
    """All but one of the first generation fail: every later child descends from that one, a gene away."""
    space = Space(block=repeat(Space(w=one_of(*range(100))), 8))
    searcher = Evolution(
        space, population=20, generations=2, parents=20, mutations=20, crossovers=0, mutation_probability=1e-9
    )
    first = searcher.ask()
    searcher.tell(dict.fromkeys(first[1:], math.nan) | {first[0]: -1e9})
    for child in searcher.ask():
        assert sum(child[name] != first[0][name] for name in child) == 1


def test_a_generation_that_failed_altogether_is_followed_by_uniform_draws() -> None:
    searcher = evolution(SPACE, 100, 0)
    searcher.tell(dict.fromkeys(searcher.ask(), math.nan))
    assert len(searcher.ask()) == 20
    assert len(run(searcher)) == 100


# Continuation


@EVERY
@settings(max_examples=10)
@given(st.integers(0, 60), st.booleans(), st.booleans())
def test_a_restored_searcher_goes_on_as_if_never_stopped(
    build: Build, stop: int, backwards: bool, inside: bool
) -> None:
    space = SPACE.within(BUDGET) if inside else SPACE
    uninterrupted = build(space, 60, 5)
    run(uninterrupted, _sometimes_failing)

    searcher, scored = build(space, 60, 5), 0
    while not searcher.done and scored < stop:
        asked = searcher.ask()
        for arch in reversed(asked) if backwards else asked:
            if scored < stop:
                searcher.tell({arch: _sometimes_failing(arch)})
                scored += 1
    state = json.dumps(searcher.state(), allow_nan=False)
    again = build(space, 60, 5)
    again.restore(json.loads(state))
    assert again.state() == searcher.state() == json.loads(state)
    assert again.ask() == searcher.ask()
    run(again, _sometimes_failing)
    assert str(history(again)) == str(history(uninterrupted))
    assert again.generation == uninterrupted.generation


def _sometimes_failing(arch: Arch) -> float:
    return math.nan if SPACE.index(arch) % 5 == 0 else score(arch)


def test_a_restored_end_is_the_end() -> None:
    searcher = random_search(TINY, 1000, 0)
    run(searcher)
    again = random_search(TINY, 1000, 0)
    again.restore(json.loads(json.dumps(searcher.state())))
    assert again.done
    assert history(again) == history(searcher)


def test_a_state_of_another_space_is_refused() -> None:
    searcher = random_search(SPACE, 40, 0)
    searcher.ask()
    with pytest.raises(ValueError, match=r"block\.0\.w"):
        random_search(TINY, 40, 0).restore(searcher.state())
    low = SPACE.within(Budget(ToyCost(1, 20), at_most=20))
    with pytest.raises(ValueError, match="outside at most 20 toys"):
        random_search(low, 40, 0).restore(searcher.state())


def test_a_state_of_another_seed_is_refused() -> None:
    state = random_search(SPACE, 40, 0).state()
    with pytest.raises(ValueError, match="seed 0, but this one's is 1"):
        random_search(SPACE, 40, 1).restore(state)


def _of(one: int, among: int) -> Callable[[Arch], bool]:
    """Return a predicate that holds for so many of so many architectures."""
    return lambda arch: zlib.crc32(repr(list(arch.values())).encode()) % among < one


HUGE = Space(block=repeat(Space(w=one_of(*range(10))), 40))


def test_a_condition_that_little_meets_does_not_end_a_search() -> None:
    scarce = Feasible(HUGE, (), [_of(1, 20)], max_tries=90)  # one draw in a hundred finds nothing
    searcher = RandomSearch(scarce, evaluations=300, batch=50)
    run(searcher)
    assert len(searcher.history) == 300
    assert all(scored.arch in scarce for scored in searcher.history)
    assert searcher.generation == 5


@EVERY
def test_generations_are_smaller_where_draws_find_too_few(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    scarce = Feasible(HUGE, (), [_of(1, 20)], max_tries=12)  # more than half of the draws find nothing
    searcher = build(scarce, 60, 0)
    run(searcher)
    assert len(searcher.history) == 60
    assert searcher.generation > 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "of 60 evaluations: none of 12 architectures drawn meets the predicate" in caplog.text


def test_a_search_that_finds_nothing_more_ends_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    ten: dict[Arch, None] = {}

    def first_ten(arch: Arch) -> bool:
        if len(ten) < 10:
            ten.setdefault(arch)
        return arch in ten

    searcher = RandomSearch(HUGE.where(first_ten), evaluations=40, batch=20)
    run(searcher)
    assert (len(searcher.history), searcher.done, searcher.ask()) == (10, True, [])
    assert "the search ends after 10 of 40 evaluations, for no new candidate was found: none of 1,000" in caplog.text
    again = RandomSearch(HUGE.where(first_ten), evaluations=40, batch=20)
    again.restore(searcher.state())
    assert again.done


def test_a_search_that_finds_nothing_from_the_start_is_an_error() -> None:
    asked: list[Arch] = []

    def once(arch: Arch) -> bool:
        asked.append(arch)
        return len(asked) == 1

    searcher = RandomSearch(Feasible(HUGE, (), [once], max_tries=5), evaluations=40, seed=1)
    for _ in range(2):
        with pytest.raises(NoneFound, match=r"no candidate was found: none of 5 architectures drawn meets"):
            searcher.ask()
    assert not searcher.done


# What is found


def test_evolution_finds_a_planted_optimum_that_random_search_does_not() -> None:
    space = Space(block=repeat(Space(w=one_of(0, 1, 2, 3), k=one_of(3, 5, 7)), 8))  # 12**8
    planted = space.sample(123)

    def close(arch: Arch) -> float:
        return float(sum(arch[name] == value for name, value in planted.items()))

    margins = []
    for seed in range(2):
        searchers = [
            Evolution(space, population=25, generations=16, seed=seed),
            RandomSearch(space, evaluations=400, seed=seed),
        ]
        for searcher in searchers:
            run(searcher, close)
            assert len(searcher.history) == 400
        margins.append(searchers[0].best()[0].score - searchers[1].best()[0].score)
    assert min(margins) >= 2
    assert np.mean(margins) >= 3


def test_children_come_from_the_parents() -> None:
    """Mutants of one parent alone differ in a gene; crossovers have each gene from one of two parents."""
    space = Space(block=repeat(Space(w=one_of(*range(50))), 10))
    searcher = Evolution(
        space, population=30, generations=2, parents=2, mutations=15, crossovers=15, mutation_probability=1e-9
    )
    asked = searcher.ask()
    searcher.tell({arch: float(-i) for i, arch in enumerate(asked)})
    first, second = asked[:2]
    children = searcher.ask()
    assert len(children) == 30
    for child in children[:15]:
        assert min(_distance(child, first), _distance(child, second)) == 1
    for child in children[15:]:
        assert all(child[name] in (first[name], second[name]) for name in child)


def _distance(one: Arch, two: Arch) -> int:
    return sum(one[name] != two[name] for name in one)


# What is refused, and the process


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 0}, "at least one evaluation, but got 0"),
        ({"generations": 0}, "at least one evaluation, but got 0"),
        ({"parents": 0}, "at least one parent, but got 0"),
        ({"mutations": 30, "crossovers": 30}, "mutations=30, crossovers=30, population=50"),
        ({"mutations": -1}, "mutations >= 0` and `crossovers >= 0` must hold, but got .mutations=-1, crossovers=25"),
        ({"mutation_probability": 0.0}, "but got 0.0"),
        ({"mutation_probability": 1.5}, "but got 1.5"),
        ({"mutation_probability": {"*.*": 0.5, "width": 1.5}}, "but got 1.5 for 'width'"),
        ({"mutation_probability": {}}, "has no pattern"),
    ],
    ids=lambda value: str(value),
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evolution(SPACE, **settings)


@pytest.mark.parametrize("settings", [{"evaluations": 0}, {"batch": 0}], ids=str)
def test_a_random_search_needs_something_to_do(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        RandomSearch(SPACE, **settings)


@pytest.mark.parametrize("search", [Evolution, RandomSearch, LocalSearch, SurrogateSearch])
def test_a_list_of_architectures_is_no_space(search: Callable[..., Searcher]) -> None:
    with pytest.raises(TypeError, match=r"`space` must be a Space or a part of one, .*; write \w+\(space, \.\.\.\)"):
        search(list(Space(a=one_of(1, 2))))


EACH: dict[str, Callable[..., Searcher]] = {
    "evolution": lambda n, seed: Evolution(SPACE, population=n, generations=n, parents=n, seed=seed),
    "random": lambda n, seed: RandomSearch(SPACE, evaluations=2 * n, batch=n, seed=seed),
    "local": lambda n, seed: LocalSearch(SPACE, evaluations=2 * n, batch=n, patience=n, seed=seed),
    "surrogate": lambda n, seed: SurrogateSearch(SPACE, evaluations=2 * n, batch=n, pool=n, seed=seed),
    "pareto": lambda n, seed: ParetoSearch(SPACE, [ToyCost(1, 20)], population=n, generations=2 * n, seed=seed),
}


@pytest.mark.parametrize("name", EACH)
def test_numpys_integers_are_integers(name: str) -> None:
    ours, theirs = EACH[name](4, 3), EACH[name](np.int64(4), np.int64(3))
    assert theirs.ask() == ours.ask()
    theirs.tell(dict.fromkeys(theirs.ask(), np.float64(0.5)))
    ours.tell(dict.fromkeys(ours.ask(), 0.5))
    assert json.dumps(theirs.state()) == json.dumps(ours.state())


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize(
    ("n", "seed", "message"),
    [
        (4, None, "`seed` must be a whole number, but got None"),
        (4, 1.0, "`seed` must be a whole number, but got 1.0"),
        (4, -1, "a seed must not be negative, but got -1"),
        (4.5, 0, "must be a whole number, but got "),
    ],
    ids=str,
)
def test_a_setting_that_is_no_whole_number_is_refused(name: str, n: object, seed: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EACH[name](n, seed)


def test_nothing_depends_on_the_hash_seed() -> None:
    script = """
from tests.search.test_searchers import BUDGET, SPACE, evolution, run
inside = SPACE.within(BUDGET)
print(*run(evolution(SPACE, 60, 1)), *run(evolution(inside, 60, 1)), *inside.sample(0, 5), inside.sample_per_choice(0))
"""
    first, second = (_printed(script, seed) for seed in ("1", "2"))
    assert first == second
    assert len(first) > 1000


def _printed(script: str, hash_seed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command, root = [sys.executable, "-c", script], Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=True).stdout


NO_NUMBERS = [float("inf"), -float("inf"), None, "0.5", 1j, pytest.param(10**400, id="huge")]
ARRAYS = [np.array([0.5, 0.6]), np.complex64(0.5), torch.tensor([0.5, 0.6]), torch.tensor(1j), torch.tensor(math.inf)]


@pytest.mark.parametrize("score", [*NO_NUMBERS, *ARRAYS])
def test_a_score_that_is_no_number_is_refused_and_nothing_recorded(score: object) -> None:
    searcher = RandomSearch(Space(a=one_of(1, 2, 3)), evaluations=3, batch=3)
    first, second, _ = searcher.ask()
    with pytest.raises(ValueError, match="finite number"):
        searcher.tell({first: 1.0, second: score})  # type: ignore[dict-item]
    assert not searcher.history


@pytest.mark.parametrize(
    "score", [np.float64(0.5), np.array([0.5]), torch.tensor(0.5, requires_grad=True), Fraction(1, 2), Decimal("0.5")]
)
def test_numbers_of_other_libraries_are_scores(score: Any) -> None:
    searcher = RandomSearch(Space(a=one_of(1, 2, 3)), evaluations=3, batch=3)
    searcher.tell(dict.fromkeys(searcher.ask(), score))
    searcher.tell({scored.arch: score for scored in searcher.history})
    assert [(type(scored.score), scored.score) for scored in searcher.history] == [(float, 0.5)] * 3
