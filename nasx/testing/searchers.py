"""What every searcher promises."""

import json
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost, Budget
from nasx.feasible import Feasible
from nasx.search import Scored, Searcher
from nasx.space import ArchSet, Probability, Rng, Space, one_of, repeat
from nasx.testing.subjects import assert_raises


class SearcherContract(ABC):
    """What every searcher promises: ask and tell, budgets, no candidate twice, seeds, states, failures, an end."""

    @abstractmethod
    def make_searcher(self, space: ArchSet, seed: int) -> Searcher:
        """Return a searcher of three or more generations and thirty or more evaluations."""

    def test_asks_until_told(self) -> None:
        """`ask` repeats what waits for a score; a finished search asks for nothing."""
        searcher = self.make_searcher(_inside(), 0)
        asked = searcher.ask()
        assert asked, "the first `ask` returned nothing"
        assert searcher.ask() == asked
        searcher.tell({asked[0]: 1.0})
        assert searcher.ask() == asked[1:]
        _finish(searcher)
        assert searcher.ask() == []
        assert searcher.generation >= 2, "give the contract a searcher of three or more generations"
        assert len(searcher.history) >= 30, "give the contract a searcher of thirty or more evaluations"

    def test_refuses_what_was_not_asked_for(self) -> None:
        """Unknown architectures, second scores and infinite scores are ValueErrors that record nothing."""
        searcher = self.make_searcher(_inside(), 0)
        asked = searcher.ask()
        stranger = next(arch for arch in _SPACE if arch not in asked)
        assert_raises(ValueError, lambda: searcher.tell({asked[0]: 1.0, stranger: 1.0}), "an unknown architecture")
        assert_raises(ValueError, lambda: searcher.tell({asked[0]: math.inf}), "an infinite score")
        assert not searcher.history, "a refused `tell` recorded something"
        searcher.tell({asked[0]: 1.0})
        assert_raises(ValueError, lambda: searcher.tell({asked[0]: 2.0}), "a second score")

    def test_candidates_are_inside_the_budget_and_come_once(self) -> None:
        """Every candidate is in the space that the searcher was given; none is asked for twice."""
        space, archs = _inside(), list[Arch]()
        for asked in _rounds(searcher := self.make_searcher(space, 0)):
            archs += asked
            searcher.tell({arch: _score(arch) for arch in asked})
        for arch in archs:
            assert arch in space, f"{dict(arch)} is outside the budget"
        assert len(set(archs)) == len(archs), "an architecture was asked for twice"

    def test_the_seed_decides(self) -> None:
        """One seed gives the same search, another seed another."""
        first, again, other = (_finish(self.make_searcher(_inside(), seed)) for seed in (3, 3, 4))
        assert first == again, "two searches with one seed differ"
        assert first != other, "two seeds give the same search"

    def test_the_order_of_scores_does_not_matter(self) -> None:
        """Scores may arrive one by one and backwards."""
        whole, single = self.make_searcher(_inside(), 0), self.make_searcher(_inside(), 0)
        for asked in _rounds(single):
            for arch in reversed(asked):
                single.tell({arch: _score(arch)})
        assert _finish(whole) == single.history, "the order in which scores arrive changes the search"

    def test_a_restored_search_goes_on_to_the_bit(self) -> None:
        """From a state that went through JSON, at any time and with scores outstanding."""
        searcher, stops = self.make_searcher(_inside(), 0), []
        for asked in _rounds(searcher):
            half = len(asked) // 2
            for part in (asked[:half], asked[half:]):
                stops.append((json.dumps(searcher.state(), allow_nan=False), searcher.history, searcher.ask()))
                searcher.tell({arch: _score(arch) for arch in part})
        for state, history, waiting in (stops[0], stops[1], stops[len(stops) // 2], stops[-1]):
            restored = self.make_searcher(_inside(), 0)
            restored.restore(json.loads(state))
            assert restored.history == history, "a restored search has lost scores"
            assert restored.ask() == waiting, "a restored search has forgotten what waits for a score"
            assert _finish(restored) == searcher.history, "a restored search goes another way"

    def test_failures_rank_last_and_have_no_children(self) -> None:
        """A candidate that scored NaN is never among the best, nor handed to the space's mutation or crossover."""
        space = _Watched(_inside())
        history = _finish(searcher := self.make_searcher(space, 0), _failing_score)
        failed = {scored.arch for scored in history if math.isnan(scored.score)}
        best = searcher.best(len(history))
        assert searcher.failed == len(failed) > 0
        assert {scored.arch for scored in best} == {scored.arch for scored in history} - failed
        assert [s.score for s in best] == sorted((s.score for s in best), reverse=True), "`best` is not sorted"
        assert not failed & space.parents, "a candidate that failed became a parent"

    def test_a_search_in_which_all_fails_ends(self) -> None:
        """NaN from everywhere is no reason to stop early or to go on for ever."""
        searcher = self.make_searcher(_inside(), 0)
        assert len(_finish(searcher, lambda arch: math.nan)) >= 30
        assert searcher.best() == []

    def test_a_space_that_runs_out_ends_the_search(self) -> None:
        """Every architecture was then asked for."""
        searcher = self.make_searcher(_TINY, 0)
        assert {scored.arch for scored in _finish(searcher)} == set(_TINY)
        assert searcher.done


_CONV = Space(kernel_size=one_of(3, 5, 7), expansion=one_of(1, 2, 4))
_SPACE = Space(width=one_of(8, 16), block=repeat(Space(op=one_of({"none": None, "conv": _CONV})), one_of(4, 6)))
_TINY = Space(block=repeat(Space(width=one_of(1, 2, 3)), 3))  # fewer than the evaluations that a search has


class _ToyCost(AdditiveCost):
    unit = "units"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return int(shared["width"])

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return int(choices.get("kernel_size", 0)) * int(choices.get("expansion", 0)) + index


def _inside() -> Feasible:
    return _SPACE.within(Budget(_ToyCost(), at_least=40, at_most=70))


class _Watched:
    """A set of architectures that remembers which ones children were asked of."""

    def __init__(self, inside: Feasible) -> None:
        self.inside = inside
        self.parents: set[Arch] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def __contains__(self, arch: object) -> bool:
        return arch in self.inside

    def __iter__(self) -> Iterator[Arch]:
        return iter(self.inside)

    def neighbours(self, arch: Mapping[str, Value]) -> Iterator[Arch]:
        self.parents.add(Arch(arch))
        return self.inside.neighbours(arch)

    def mutate(self, arch: Arch, rng: Rng, probability: Probability = 0.1) -> Arch:
        self.parents.add(arch)
        return self.inside.mutate(arch, rng, probability)

    def crossover(self, first: Arch, second: Arch, rng: Rng) -> Arch:
        self.parents |= {first, second}
        return self.inside.crossover(first, second, rng)


def _score(arch: Arch) -> float:
    return zlib.crc32(json.dumps(sorted(arch.items())).encode()) % 97 / 97


def _failing_score(arch: Arch) -> float:
    score = _score(arch)
    return math.nan if score > 0.6 else score  # those that fail would be the best


def _rounds(searcher: Searcher) -> Iterator[list[Arch]]:
    """Yield what is asked for until the search is done."""
    while not searcher.done:
        asked = searcher.ask()
        assert asked, "`ask` returned nothing although the search is not done"
        before = len(searcher.history)
        yield asked
        assert len(searcher.history) > before, "`history` does not grow with `tell`"


def _finish(searcher: Searcher, score: Callable[[Arch], float] = _score) -> tuple[Scored, ...]:
    for asked in _rounds(searcher):
        searcher.tell({arch: score(arch) for arch in asked})
    return searcher.history
