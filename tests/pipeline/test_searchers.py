"""Searchers that settings ask for: which settings reach them, and what a plan says of them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nasx import Arch, Budget
from nasx.pipeline import Refused, plan, run
from nasx.pipeline.config import SEARCH_METHODS, Search
from nasx.pipeline.events import CandidateScored
from nasx.pipeline.progress import silent
from nasx.pipeline.records import stage_results
from nasx.pipeline.scoring import races
from nasx.pipeline.searchers import checked_candidate, make_searcher
from nasx.search import RandomSearch
from tests.pipeline.searches import CONFIG, SPACE
from tests.pipeline.test_run import MACHINE, problem


class Endless:
    """A searcher of one's own that does not say how many candidates it will ask for."""

    def __init__(self, space: Any, seed: int) -> None:
        self.inner = RandomSearch(space, evaluations=5, batch=5, seed=seed)

    @property
    def done(self) -> bool:
        return self.inner.done

    def ask(self) -> Sequence[Arch]:
        return self.inner.ask()

    def tell(self, scores: Mapping[Arch, float]) -> None:
        self.inner.tell(scores)


OWN = (Endless, RandomSearch(SPACE, evaluations=5, batch=5))


def asked_with(method: Any, **settings: Any) -> list[list[Arch]]:
    """Return the generations that a searcher of a run asks for where wider networks score higher."""
    config = Search(**{"method": method, "population": 4, "generations": 3, "parents": 2, **settings})
    searcher, found = make_searcher(config, SPACE, [problem().macs], seed=0), []
    while not searcher.done:
        found.append(list(searcher.ask()))
        searcher.tell({arch: sum(float(value) for value in arch.values()) for arch in found[-1]})
    return found


def named(method: Any) -> str:
    return method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)


class Partly:
    """What has some of a searcher."""

    done = False

    def ask(self) -> Sequence[Arch]:
        return []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("evolve", "evolution, random, pareto, local, or from Python .* but got 'evolve'"),
        (Partly(), "this Partly has no `tell`"),
        (3, "this int has no `ask`, no `tell`, no `done`"),
    ],
    ids=["a name", "an object", "a number"],
)
def test_what_is_no_searcher_is_refused_with_what_it_lacks(method: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Search(method=method)


CHANGES: Mapping[str, Any] = {"population": 5, "generations": 2, "parents": 4, "mutation_probability": 1.0}


@pytest.mark.parametrize("method", [*SEARCH_METHODS, *OWN], ids=named)
def test_a_setting_of_the_search_has_an_effect_or_is_said_to_have_none(method: Any) -> None:
    unused = Search(method=method).unused()
    for name, value in CHANGES.items():
        changed = asked_with(method, **{name: value}) != asked_with(method)
        assert changed == (name not in unused), name


@pytest.mark.parametrize("method", SEARCH_METHODS)
def test_a_generation_has_the_population_that_was_set(method: str) -> None:
    for population in (2, 4):
        assert {len(generation) for generation in asked_with(method, population=population)} == {population}


@pytest.mark.parametrize("method", OWN, ids=named)
def test_settings_without_an_effect_on_a_searcher_of_ones_own_are_noted(
    method: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        problem(CONFIG.model_copy(update={"search": Search(method=method, population=4, generations=3)}))
    for name in ("population=4", "generations=3"):
        assert f"search.{name} has no effect, because search.method is" in caplog.text
    assert "settings of its own" in caplog.text


def test_a_plan_counts_the_candidates_of_the_searcher_itself() -> None:
    counts = {}
    for method in ("local", *OWN):
        config = CONFIG.model_copy(update={"search": Search(method=method, population=4, generations=3)})
        stages = plan(problem(config), machine=MACHINE, timing=False)["stages"]
        counts[method] = next(stage["detail"] for stage in stages if stage["name"] == "search")
    assert counts["local"].startswith("12 candidates x")
    assert counts[OWN[1]].startswith("5 candidates x")
    assert counts[Endless].startswith("as many candidates as search.method asks for x")


class Outside(Endless):
    """A searcher that asks for networks of another budget."""

    def __init__(self, space: Any, seed: int) -> None:
        super().__init__(SPACE, seed)


def within() -> Any:
    return problem(budget=Budget(problem().params, at_most=300))


def test_a_searcher_made_over_more_than_is_searched_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    own = within()
    method = RandomSearch(SPACE, evaluations=5, batch=5)
    searched = problem(config=CONFIG.model_copy(update={"search": Search(method=method)}), budget=own.budgets)
    with pytest.raises(Refused, match=r"search\.method asks for Arch\(.*the architecture has .* outside .*at most 300"):
        run(searched, tmp_path / "run", machine=MACHINE)
    assert not (tmp_path / "run").exists()
    inside = RandomSearch(own.inside, evaluations=5, batch=5)
    assert make_searcher(Search(method=inside), own.inside, [own.macs], seed=0).ask()


def test_what_a_searcher_asks_for_is_held_to_the_budget(tmp_path: Path) -> None:
    method = CONFIG.model_copy(update={"search": Search(method=Outside)})
    searched = problem(config=method, budget=within().budgets)
    with pytest.raises(ValueError, match=r"search\.method asks for"):
        run(searched, tmp_path, machine=MACHINE)


def test_candidates_are_spelt_as_in_the_space() -> None:
    (arch, *_) = SPACE.sample(0, 1)
    spelt = Arch({name: float(value) for name, value in arch.items()})
    found = checked_candidate(spelt, SPACE)
    assert [type(value) for value in found.values()] == [type(value) for value in arch.values()]


@pytest.mark.parametrize("method", [*OWN, "pareto"], ids=named)
def test_exact_scores_are_told_where_more_than_the_best_may_matter(method: Any) -> None:
    many: Any = SimpleNamespace(counts={"val": 5000}, metric="accuracy")
    assert races(Search(), many)
    assert not races(Search(method=method), many)
    assert "racing_error" in Search(method=method).unused()


@pytest.mark.parametrize("method", SEARCH_METHODS)
def test_a_space_that_ends_with_a_generation_ends_the_search(method: str, tmp_path: Path) -> None:
    """Three and nine networks of one and of two blocks: four generations of three."""
    config = CONFIG.model_copy(
        update={"search": Search(method=method, population=3, generations=9, parents=2, top_k=1)}
    )
    found = run(problem(config), tmp_path, machine=MACHINE)
    assert found.summary["searches"]["search"]["evaluations"] == SPACE.size == 12


def test_a_searcher_that_is_done_before_it_begins_is_refused(tmp_path: Path) -> None:
    spent = RandomSearch(SPACE, evaluations=1, batch=1)
    spent.tell(dict.fromkeys(spent.ask(), 1.0))
    config = CONFIG.model_copy(update={"search": Search(method=spent, top_k=1)})
    with pytest.raises(Refused, match=r"search\.method is done before it has asked"):
        run(problem(config), tmp_path, machine=MACHINE)


class Repeating(Endless):
    """A searcher that asks for its best again, in the same round and in later ones, as one that samples a policy."""

    def __init__(self, space: Any, seed: int) -> None:
        self.archs, self.told = list(space.sample(seed, 3)), list[Mapping[Arch, float]]()

    @property
    def done(self) -> bool:
        return len(self.told) == 3

    def ask(self) -> Sequence[Arch]:
        return [*self.archs[: len(self.told) + 1], self.archs[0]]

    def tell(self, scores: Mapping[Arch, float]) -> None:
        assert set(scores) == set(self.ask())
        self.told.append(dict(scores))


def test_a_candidate_that_is_asked_for_again_counts_once(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"search": Search(method=Repeating, top_k=3)})
    scored: list[Arch] = []
    run(
        problem(config),
        tmp_path,
        machine=MACHINE,
        progress=silent,
        on_event=lambda event: scored.append(event.arch) if isinstance(event, CandidateScored) else None,
    )
    search, retrain = (stage_results(tmp_path)[stage] for stage in ("search", "retrain"))
    assert search["evaluations"] == len(scored) == len(set(scored)) == 3
    assert search["validation_images"] == search["validation_images_in_full"]
    assert {Arch(network["arch"]) for network in retrain["networks"]} == set(scored)
