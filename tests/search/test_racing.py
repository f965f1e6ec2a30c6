import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from benchmarks.racing import Bools, recorded, replay, simulated
from nasx import Arch, Space, one_of
from nasx.search import Evolution, Race, race
from nasx.search.racing import Ints

ARCHS = [Arch({"candidate": i}) for i in range(30)]
HITS = dict(zip(ARCHS, simulated(candidates=160)["spread of 4 points"][:30], strict=True))


def correct(archs: Sequence[Arch], indices: Ints) -> Bools:
    return np.array([HITS[arch][indices] for arch in archs])


@pytest.fixture(scope="module")
def raced() -> Race:
    return race(ARCHS, correct, 5_000)


def test_generations_of_a_real_search_keep_their_best_for_half_the_images() -> None:
    found = replay(recorded()["CIFAR-10, a whole search"])
    assert found["generations within 0.1 points"] >= 0.95
    assert found["images evaluated"] <= 0.5


def test_the_error_holds_over_simulated_worlds() -> None:
    found = {name: replay(hits) for name, hits in simulated().items()}
    within = [row["generations within 0.1 points"] for row in found.values()]
    assert np.mean(within) >= 0.95  # of 200 generations
    assert min(within) >= 0.85  # of 40, which a chance of 0.95 falls below once in a hundred times
    assert max(row["lost, points"] for row in found.values()) < 0.05


def test_what_stands_out_costs_little() -> None:
    worlds = simulated()
    spread = replay(worlds["spread of 4 points"], generations=5)
    equal = replay(worlds["all equally good"], generations=5)
    assert spread["images evaluated"] < 0.35 < equal["images evaluated"]


def test_survivors_are_scored_on_all_images(raced: Race) -> None:
    assert 5 <= len(raced.kept) < len(ARCHS)
    assert [raced.scores[arch] for arch in raced.kept] == [HITS[arch].mean() for arch in raced.kept]
    assert sorted(raced.kept, key=lambda arch: -HITS[arch].mean()) == list(raced.kept)


def test_every_candidate_has_a_score_that_ranks_it_below_the_kept(raced: Race) -> None:
    assert list(raced.scores) == ARCHS
    dropped = [score for arch, score in raced.scores.items() if arch not in raced.kept]
    assert max(dropped) < raced.scores[raced.kept[4]]
    errors = [raced.scores[arch] - HITS[arch].mean() for arch in ARCHS]
    assert np.abs(errors).max() < 0.06  # four standard errors of a tenth of the images


def test_no_image_is_evaluated_twice_and_all_are_counted() -> None:
    seen: Counter[tuple[Arch, int]] = Counter()

    def counted(archs: Sequence[Arch], indices: Ints) -> Bools:
        assert list(indices) == sorted(indices)
        seen.update((arch, int(i)) for arch in archs for i in indices)
        return correct(archs, indices)

    found = race(ARCHS, counted, 5_000)
    assert set(seen.values()) == {1}
    assert found.samples == len(seen) < found.samples_in_full == 30 * 5_000


def test_all_see_the_same_images_at_each_look() -> None:
    looked: dict[Arch, list[tuple[int, ...]]] = {arch: [] for arch in ARCHS}

    def watched(archs: Sequence[Arch], indices: Ints) -> Bools:
        for arch in archs:
            looked[arch].append(tuple(indices.tolist()))
        return correct(archs, indices)

    found = race(ARCHS, watched, 5_000, seed=3)
    longest = max(looked.values(), key=len)
    for arch in ARCHS:
        if arch not in found.kept:
            assert looked[arch] == longest[: len(looked[arch])]


def test_looks_never_gain_candidates(raced: Race) -> None:
    sizes, left = zip(*raced.looks, strict=True)
    assert list(sizes) == sorted(sizes)
    assert list(left) == sorted(left, reverse=True)
    assert left[-1] == len(raced.kept)
    assert raced.error_probability == 0.05


@pytest.mark.parametrize(("images", "keep"), [(999, 5), (5_000, 30), (5_000, 40)])
def test_where_nothing_can_be_gained_it_is_plain_evaluation(images: int, keep: int) -> None:
    found = race(ARCHS, correct, images, keep=keep)
    assert found.scores == {arch: HITS[arch][:images].mean() for arch in ARCHS}
    assert set(found.kept) == set(ARCHS)
    assert found.samples == found.samples_in_full == images * 30
    assert found.error_probability == 0
    assert found.looks == ()


def test_candidates_that_never_differ_lose_nothing() -> None:
    found = race(ARCHS, lambda archs, indices: correct([ARCHS[0]] * len(archs), indices), 2_000)
    assert len(found.kept) >= 5
    assert {found.scores[arch] for arch in found.kept} == {HITS[ARCHS[0]][:2_000].mean()}


def test_one_that_is_always_wrong_goes_first() -> None:
    def failing(archs: Sequence[Arch], indices: Ints) -> Bools:
        return correct(archs, indices) & np.array([[arch != ARCHS[3]] for arch in archs])

    found = race(ARCHS, failing, 5_000, looks=(0.1,))
    assert ARCHS[3] not in found.kept
    assert found.scores[ARCHS[3]] < min(score for arch, score in found.scores.items() if arch != ARCHS[3])


def test_failures_rank_nowhere_and_change_no_other_score() -> None:
    gone = set(ARCHS[:25])

    def failing(archs: Sequence[Arch], indices: Ints) -> list[Bools | None]:
        return [None if arch in gone else HITS[arch][indices] for arch in archs]

    found = race(ARCHS, failing, 5_000)
    assert set(found.kept) == set(ARCHS[25:])  # no more than are kept are left
    assert [arch for arch, score in found.scores.items() if math.isnan(score)] == ARCHS[:25]
    assert [found.scores[arch] for arch in ARCHS[25:]] == [HITS[arch].mean() for arch in ARCHS[25:]]
    assert found.samples == 25 * 500 + 5 * 5_000
    gone.update(ARCHS)
    assert race(ARCHS, failing, 5_000).kept == ()


def test_who_was_dropped_takes_the_place_of_who_fails_late() -> None:
    best = sorted(ARCHS, key=lambda arch: -HITS[arch].mean())

    def failing(archs: Sequence[Arch], indices: Ints) -> list[Bools | None]:
        late = len(indices) == 1_000  # from the last look, after 80 % of the images, to the end
        return [None if late and arch in best[:4] else HITS[arch][indices] for arch in archs]

    found = race(ARCHS, failing, 5_000)
    assert len(found.kept) >= 5
    assert not set(found.kept) & set(best[:4])
    assert all(found.scores[arch] == HITS[arch].mean() for arch in found.kept)
    dropped = [score for arch, score in found.scores.items() if arch not in (*found.kept, *best[:4])]
    assert max(dropped) < min(found.scores[arch] for arch in found.kept[:5])


def test_a_seed_decides_everything() -> None:
    assert race(ARCHS, correct, 5_000, seed=4) == race(ARCHS, correct, 5_000, seed=4)
    assert race(ARCHS, correct, 5_000, seed=4) != race(ARCHS, correct, 5_000, seed=5)


def test_a_stricter_race_takes_more_images(raced: Race) -> None:
    strict = race(ARCHS, correct, 5_000, error_probability=1e-4, tolerance=1e-5)
    assert strict.samples > raced.samples


def test_a_searcher_is_told_its_scores() -> None:
    space = Space(candidate=one_of(*range(30)))
    searcher = Evolution(space, population=15, generations=2, seed=0)
    while not searcher.done:
        found = race(searcher.ask(), correct, 5_000, keep=3, seed=searcher.generation)
        searcher.tell(found.scores)
    true = sorted((HITS[arch].mean() for arch in ARCHS), reverse=True)
    assert searcher.best()[0].score >= true[0] - 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0}, "keep=0"),
        ({"error_probability": 0.0}, "error_probability"),
        ({"tolerance": 0.0}, "tolerance > 0"),
        ({"looks": (0.5, 0.2)}, "growing shares"),
        ({"looks": (0.5, 1.0)}, "growing shares"),
        ({"samples": 0}, "at least one sample"),
        ({"samples": 1e3}, "`samples` must be a whole number, but got 1000.0"),
        ({"seed": None}, "`seed` must be a whole number, but got None"),
        ({"archs": []}, "0 of them distinct"),
        ({"archs": [ARCHS[0], ARCHS[0]]}, "2, 1 of them distinct"),
        (
            {"score": lambda archs, indices: correct(archs, indices)[1:]},
            "scores for 3 candidates, but returned 2",
        ),
        ({"score": lambda archs, indices: correct(archs, indices)[:, 1:]}, r"but returned bool \(4999,\)"),
        ({"score": lambda archs, indices: correct(archs, indices).astype(int)}, "returned int64"),
        ({"score": lambda archs, indices: None}, "scores for 3 candidates, but returned None"),
        ({"score": lambda archs, indices: np.array(0.5)}, "scores for 3 candidates, but returned array"),
        ({"score": lambda archs, indices: torch.from_numpy(correct(archs, indices))}, "but returned Tensor; write np"),
        ({"score": lambda archs, indices: correct(archs, indices).tolist()}, "but returned list; write np.asarray"),
        ({"score": lambda archs, indices: dict.fromkeys(archs, 0.5)}, "but returned Arch; write np.asarray"),
        ({"score": lambda archs, indices: [None, correct(archs, indices)[1], 0.5]}, "but returned float; write np"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"archs": ARCHS[:3], "score": correct, "samples": 5_000}
    with pytest.raises(ValueError, match=message):
        race(**(arguments | changes))  # type: ignore[arg-type]


def test_searching_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, nasx.search; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def worlds(count: int, spread: float) -> list[np.ndarray]:
    """Scores (candidates, samples) that are no hits: the samples' difficulty, the candidates' merit, and chance."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng([seed, 7])
        merit, difficulty = spread * rng.normal(size=(40, 1)), 3 * rng.normal(size=2_000)
        made.append(merit + difficulty + rng.normal(size=(40, 2_000)))
    return made


def race_of(scores: np.ndarray, **settings: object) -> Race:
    archs = [Arch({"candidate": i}) for i in range(len(scores))]
    of = dict(zip(archs, scores, strict=True))
    return race(archs, lambda a, i: np.array([of[arch][i] for arch in a]), scores.shape[1], **settings)  # type: ignore[arg-type]


def test_scores_that_are_no_hits_race_within_a_tenth_of_their_spread() -> None:
    within, used = [], []
    for seed, scores in enumerate(worlds(40, spread=0.2)):
        found = race_of(scores, seed=seed)
        means = scores.mean(axis=1)
        assert 0.1 * means.std() / 3 < found.tolerance < 0.1 * means.std() * 3
        kept = sorted((found.scores[arch] for arch in found.kept), reverse=True)[:5]
        within.append(np.sort(means)[-5:].mean() - np.mean(kept) <= 0.1 * means.std())
        used.append(found.samples / found.samples_in_full)
    assert np.mean(within) >= 0.95
    assert np.mean(used) < 0.6


def test_the_unit_of_scores_does_not_matter() -> None:
    (scores,) = worlds(1, spread=0.2)
    found, scaled = race_of(scores), race_of(1000 * scores - 5)
    assert scaled.kept == found.kept
    assert scaled.looks == found.looks
    assert scaled.tolerance == pytest.approx(1000 * found.tolerance)
    dropped = [score for arch, score in found.scores.items() if arch not in found.kept]
    assert max(dropped) < found.scores[found.kept[4]]
    own = [scores[int(arch["candidate"])].mean() for arch in found.kept]
    assert [found.scores[arch] for arch in found.kept] == pytest.approx(own)


def test_candidates_whose_scores_never_differ_are_all_evaluated() -> None:
    for scores in (np.zeros((8, 1_000)), np.tile(np.random.default_rng(0).normal(size=1_000), (8, 1))):
        found = race_of(scores)
        assert len(set(found.scores.values())) == 1
        assert len(found.kept) >= 5


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (np.full(1_000, np.nan), "finite scores, and None"),
        (np.zeros(1_000, bool), "bools for all or floats for all"),
    ],
)
def test_scores_of_two_kinds_or_not_finite_are_refused(first: np.ndarray, message: str) -> None:
    def score(archs: Sequence[Arch], indices: Ints) -> list[np.ndarray]:
        return [np.zeros(len(indices)), first[indices]]

    with pytest.raises(ValueError, match=message):
        race(ARCHS[:2], score, 1_000)
