"""How candidates are scored: alone, in races, when the device runs out of memory, or outputs are not finite."""

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from nasx import Arch
from nasx.data import load_digits
from nasx.pipeline.distributed_run import CopiedJournal
from nasx.pipeline.images import ImageTask
from nasx.pipeline.scoring import Scoring
from nasx.pipeline.vit import ViTProblem
from nasx.run import Interrupted
from nasx.search.racing import Race
from nasx.train import ALONE, Batches, Evaluation, evaluate
from recipes.glit.config import Config
from recipes.glit.problem import glit_problem
from tests.pipeline.problems import context_of, glit

PROBLEM = glit(["search.recalibration_batches=1"])
CONFIG = PROBLEM.config


def scoring(
    problem: ViTProblem[Config] = PROBLEM, records: Sequence[Any] = (), stop: Any = None, group: Any = ALONE
) -> Scoring:
    torch.manual_seed(0)
    supernet = problem.supernet(problem.space)
    journal = CopiedJournal(records)
    context = context_of(problem, Path(), "joint/search", stop=stop, journal=journal, group=group)
    return Scoring(context, problem.space, supernet)


def with_memory_for(images: int) -> Callable[..., Evaluation]:
    def limited(model: torch.nn.Module, batches: Batches, **how: Any) -> Evaluation:
        found = list(batches)
        if max(len(labels) for _, labels in found) > images:
            raise torch.OutOfMemoryError("a small device")
        return evaluate(model, found, **how)

    return limited


def test_a_candidate_that_does_not_fit_is_scored_in_smaller_batches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arch = PROBLEM.inside.sample(0)
    score = scoring().score(arch).score
    monkeypatch.setattr("nasx.pipeline.scoring.evaluate", with_memory_for(70))
    with caplog.at_level(logging.WARNING):
        assert scoring().score(arch).score == pytest.approx(score, abs=1 / 287)
    assert [record.args for record in caplog.records] == [(256,), (128,), (64,)]


def test_a_candidate_that_never_fits_has_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nasx.pipeline.scoring.evaluate", with_memory_for(0))
    assert math.isnan(scoring().score(PROBLEM.inside.sample(0)).score)
    assert "even sample by sample" in caplog.text


def test_a_candidate_whose_outputs_are_not_finite_has_failed() -> None:
    broken = scoring()
    with torch.no_grad():
        dict(broken.supernet.named_parameters())["head.weight"].fill_(math.nan)
    assert math.isnan(broken.score(PROBLEM.inside.sample(0)).score)


@pytest.fixture(scope="module")
def large() -> ViTProblem[Config]:
    """Return a problem with enough validation images to race: digits that only ever are evaluated."""
    digits = load_digits(seed=0, val_fraction=0.75)
    assert len(digits.val) >= 1_000
    return glit_problem(CONFIG, ImageTask(digits, CONFIG.data))


ARCHS = PROBLEM.inside.sample(3, 12)


@pytest.fixture(scope="module")
def full(large: ViTProblem[Config]) -> dict[Arch, float]:
    alone = scoring(large)
    return {arch: alone.score(arch).score for arch in ARCHS}


def test_races_are_off_where_they_gain_nothing(large: ViTProblem[Config]) -> None:
    assert scoring(large).races
    assert not scoring().races
    for off in ({"racing_error": 0.0}, {"method": "pareto"}):
        search = CONFIG.search.model_copy(update=off)
        assert not scoring(glit_problem(CONFIG.model_copy(update={"search": search}), large.images)).races


def test_a_race_scores_the_best_on_all_images(large: ViTProblem[Config], full: dict[Arch, float]) -> None:
    raced = scoring(large)
    shares: list[float] = []
    scores = raced.race_generation(ARCHS, 0, shares.append)
    best = sorted(scores, key=lambda arch: -scores[arch])[: CONFIG.search.parents]
    assert [scores[arch] for arch in best] == [full[arch] for arch in best]
    assert max(scores.values()) >= max(full.values()) - 0.001
    images = len(large.images.dataset.val)
    assert raced.validation_images < 12 * images
    assert raced.recalibration_images == 12 * CONFIG.search.recalibration_batch_size
    assert raced.error_probability == 0.05
    assert raced.race_generation([], 1) == {}
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(raced.validation_images / (12 * images))


@pytest.mark.parametrize(("method", "kept"), [("evolution", CONFIG.search.parents), ("random", 2), ("local", 2)])
def test_a_race_keeps_those_that_go_on(
    method: str, kept: int, large: ViTProblem[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = CONFIG.search.model_copy(update={"method": method, "top_k": 2})
    raced = scoring(glit_problem(CONFIG.model_copy(update={"search": search}), large.images))
    asked: list[int] = []

    def noted(archs: Sequence[Arch], scores_of: Any, samples: int, *, keep: int, **how: Any) -> Race:
        asked.append(keep)
        return Race(dict.fromkeys(archs, 0.5), (), (), samples, samples, 0.0, 0.001)

    monkeypatch.setattr("nasx.pipeline.scoring.race", noted)
    raced.race_generation(ARCHS, 0)
    assert asked == [kept]


class AfterSome:
    """A flag that is set once it has been asked a number of times."""

    def __init__(self, times: int) -> None:
        self.times = times

    @property
    def requested(self) -> bool:
        self.times -= 1
        return self.times < 0


@pytest.fixture(scope="module")
def whole(large: ViTProblem[Config]) -> tuple[Scoring, Mapping[Arch, float]]:
    """A race that nothing interrupts, and its scores."""
    whole = scoring(large)
    return whole, whole.race_generation(ARCHS, 4)


@pytest.mark.parametrize("evaluations", [0, 14])
def test_an_interrupted_race_goes_on_where_it_was(
    large: ViTProblem[Config],
    whole: tuple[Scoring, Mapping[Arch, float]],
    evaluations: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unbroken, scores = whole
    first = scoring(large, stop=AfterSome(evaluations))
    with pytest.raises(Interrupted):
        first.race_generation(ARCHS, 4)
    journal = list(first.context.stage.journal)
    assert len(journal) == evaluations
    done = 0

    def counted(*arguments: Any, **how: Any) -> Evaluation:
        nonlocal done
        done += 1
        return evaluate(*arguments, **how)

    monkeypatch.setattr("nasx.pipeline.scoring.evaluate", counted)
    again = scoring(large, journal)
    assert again.race_generation(ARCHS, 4) == scores
    assert list(again.context.stage.journal) == list(unbroken.context.stage.journal)
    assert done == len(list(unbroken.context.stage.journal)) - evaluations
    assert again.validation_images == unbroken.validation_images


def failing(monkeypatch: pytest.MonkeyPatch, when: Callable[[Arch, int], bool]) -> dict[Arch, int]:
    """Let candidates fail, by how many images they have seen before; return how many images each was evaluated on."""
    seen: dict[Arch, int] = dict.fromkeys(ARCHS, 0)

    def evaluated(subnet: Any, batches: Batches, **how: Any) -> Evaluation:
        scored = evaluate(subnet, batches, **how)
        fails = when(subnet.arch, seen[subnet.arch])
        seen[subnet.arch] += scored.samples
        return replace(scored, loss=math.nan) if fails else scored

    monkeypatch.setattr("nasx.pipeline.scoring.evaluate", evaluated)
    return seen


def test_who_fails_in_a_race_scores_nan_and_is_left_alone(
    large: ViTProblem[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = failing(monkeypatch, lambda arch, before: arch in ARCHS[1:3])
    raced = scoring(large)
    scores = raced.race_generation(ARCHS, 0)
    assert {arch for arch, score in scores.items() if math.isnan(score)} == set(ARCHS[1:3])
    dropped = [record for record in raced.context.stage.journal if record["scores"] is None]
    assert len(dropped) == 2  # evaluated once, and never again
    assert raced.validation_images == sum(seen.values())


def test_the_best_that_fails_at_the_last_look_spoils_no_other_score(
    large: ViTProblem[Config], full: dict[Arch, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = max(full, key=lambda arch: full[arch])
    images = len(large.images.dataset.val)
    seen = failing(monkeypatch, lambda arch, before: arch == best and before >= 0.8 * images - 1)
    raced = scoring(large)
    scores = raced.race_generation(ARCHS, 0)
    assert math.isnan(scores[best])
    assert sum(math.isnan(score) for score in scores.values()) == 1
    kept = CONFIG.search.parents
    ranked = sorted(set(ARCHS) - {best}, key=lambda arch: -scores[arch])
    assert [scores[arch] for arch in ranked[:kept]] == [full[arch] for arch in ranked[:kept]]
    assert max(scores[arch] for arch in ranked) >= max(full[arch] for arch in ranked) - 0.001
    assert raced.validation_images == sum(seen.values())


def test_where_all_fail_nothing_is_evaluated_further(
    large: ViTProblem[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = failing(monkeypatch, lambda arch, before: True)
    scores = scoring(large).race_generation(ARCHS, 0)
    assert all(map(math.isnan, scores.values()))
    assert len(set(seen.values())) == 1
    assert seen[ARCHS[0]] <= 0.1 * len(large.images.dataset.val) + 1


class Rank:
    """One of two threads that meet as the processes of a group do."""

    size = 2
    met = threading.Barrier(2, timeout=60)
    sent: ClassVar[list[dict[Any, Any]]] = [{}, {}]

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def shared_out(self, items: Sequence[Any]) -> Sequence[Any]:
        return items[self.rank :: 2]

    def gather(self, results: dict[Any, Any]) -> dict[Any, Any]:
        self.met.wait()
        self.sent[self.rank] = results
        self.met.wait()
        assert not self.sent[0].keys() & self.sent[1].keys()
        return self.sent[0] | self.sent[1]

    def any(self, flag: bool) -> bool:
        return any(self.gather({self.rank: flag}).values())


def test_the_number_of_ranks_changes_no_score(large: ViTProblem[Config]) -> None:
    alone = scoring(large)
    scores = alone.race_generation(ARCHS, 2)
    ranks = [scoring(large, group=Rank(rank)) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        raced = list(pool.map(lambda rank: rank.race_generation(ARCHS, 2), ranks))
    assert raced == [scores, scores]
    assert list(ranks[0].context.stage.journal) == list(ranks[1].context.stage.journal)
    assert sorted(map(str, ranks[0].context.stage.journal)) == sorted(map(str, alone.context.stage.journal))


def test_all_ranks_stop_where_one_is_asked_to(large: ViTProblem[Config]) -> None:
    ranks = [scoring(large, group=Rank(0), stop=AfterSome(3)), scoring(large, group=Rank(1))]

    def stopped(rank: Scoring) -> list[Any]:
        with pytest.raises(Interrupted):
            rank.race_generation(ARCHS, 2)
        return list(rank.context.stage.journal)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(stopped, ranks)
    assert first == second
    assert len(first) == 6  # three of each
