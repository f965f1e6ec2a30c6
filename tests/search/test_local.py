from collections.abc import Mapping

import numpy as np
import pytest

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.arch import Value
from nasx.cost import AdditiveCost
from nasx.search import LocalSearch, RandomSearch, Searcher
from nasx.space import ArchSet
from nasx.testing import SearcherContract


class Width(AdditiveCost):
    unit = "channels"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return 0

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return int(choices["width"])


SPACE = Space(block=repeat(Space(width=one_of(*range(6))), 8))  # 1.7 million architectures


class TestLocalSearch(SearcherContract):
    def make_searcher(self, space: ArchSet, seed: int) -> Searcher:
        return LocalSearch(space, evaluations=60, batch=12, seed=seed)


def score(arch: Arch) -> float:
    """One summit, to which every neighbour that is nearer scores better."""
    return -sum(abs(int(value) - 3) for value in arch.values() if isinstance(value, int))


def finish(searcher: Searcher) -> Searcher:
    while not searcher.done:
        searcher.tell({arch: score(arch) for arch in searcher.ask()})
    return searcher


def differing(first: Arch, second: Arch) -> int:
    return sum(first[name] != second[name] for name in first)


def test_it_climbs_where_random_search_hardly_rises() -> None:
    for seed in range(3):
        local, drawn = LocalSearch(SPACE, evaluations=400, seed=seed), RandomSearch(SPACE, evaluations=400, seed=seed)
        assert finish(local).best()[0].score == 0
        assert finish(drawn).best()[0].score <= -2


def test_a_generation_holds_neighbours_of_the_best_so_far() -> None:
    searcher = LocalSearch(SPACE, evaluations=100, batch=20, seed=0)
    for _ in range(4):
        asked = searcher.ask()
        best = searcher.best()
        if best:
            assert {differing(best[0].arch, arch) for arch in asked} == {1}
        searcher.tell({arch: score(arch) for arch in asked})


def test_a_climb_without_progress_ends_and_another_begins_elsewhere() -> None:
    searcher = LocalSearch(SPACE, evaluations=200, batch=10, patience=2, seed=0)
    distances = []
    while not searcher.done:
        asked = searcher.ask()
        known = [scored.arch for scored in searcher.history]
        near = [min((differing(arch, other) for other in known), default=8) for arch in asked]
        distances.append(float(np.mean(near)))
        searcher.tell(dict.fromkeys(asked, 0.5))  # a plain without summits
    starts = [generation for generation, distance in enumerate(distances) if distance > 1.5]
    assert starts == list(range(0, 20, 3))  # a start, and two generations of neighbours that are no better


def test_in_a_tight_budget_neighbours_change_in_several_genes() -> None:
    inside = SPACE.within(Budget(Width(), at_least=24, at_most=24))  # no gene can change alone
    searcher = LocalSearch(inside, evaluations=60, batch=20, seed=0)
    searcher.tell({arch: score(arch) for arch in searcher.ask()})
    best = searcher.best()[0].arch
    changed = [differing(best, arch) for arch in searcher.ask()]
    assert all(arch in inside for arch in searcher.ask())
    assert np.median(changed) <= 5  # two draws differ in seven


@pytest.mark.parametrize(("change", "message"), [({"batch": 0}, "batch needs"), ({"patience": 0}, "patience >= 1")])
def test_settings_without_a_meaning_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalSearch(SPACE, **change)
