"""The searcher of a run, as the settings ask, and which of its candidates go on."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from nasx.arch import Arch
from nasx.cost import Cost
from nasx.feasible import Feasible
from nasx.pipeline.config import SEARCHER_NAMES, Search, with_settings_named
from nasx.search import Evolution, LocalSearch, ParetoSearch, RandomSearch
from nasx.search.pareto import nondominated_ranks
from nasx.space import ArchSet, Space

_LOOKED_AT = 32  # architectures that a searcher of one's own would draw
_COUNTED = 10_000  # architectures that are counted one by one, where filters leave their number open


class AskTell(Protocol):
    """A searcher with `ask` and `tell` (`nasx.testing.SearcherContract`)."""

    @property
    def done(self) -> bool:
        """Whether the search is over."""

    def ask(self) -> Sequence[Arch]:
        """Return the candidates that wait for a score."""

    def tell(self, scores: Mapping[Arch, float]) -> None:
        """Record scores, higher is better; NaN for a candidate that failed."""


def make_searcher(config: Search, archs: ArchSet, costs: Sequence[Cost], seed: int) -> AskTell:
    """Return the searcher that a configuration asks for, over some architectures; a ValueError names the settings."""
    try:
        searcher = _searcher(config, archs, costs, seed)
    except ValueError as error:
        raise ValueError(with_settings_named(str(error), "search", ("mutation_probability",))) from error
    if searcher.done:
        raise ValueError("search.method is done before it has asked for a candidate; give it evaluations to spend")
    return searcher


def generations(searcher: AskTell, archs: ArchSet) -> Iterator[list[Arch]]:
    """Yield the candidates that a searcher asks for, each once a round, until it is done.

    It is told their scores in between.
    """
    done = searcher.done
    while not done:
        asked = list(dict.fromkeys(checked_candidate(arch, archs) for arch in searcher.ask()))
        done = searcher.done  # also where it looked for more candidates and there are none
        if asked:
            yield asked
            done = searcher.done
        elif not done:
            raise ValueError(
                "search.method asked for no candidate, but its `done` is false; return candidates, or be done"
            )


def _searcher(config: Search, archs: ArchSet, costs: Sequence[Cost], seed: int) -> AskTell:
    method, evaluations = config.method, config.population * config.generations
    match method:
        case "evolution":
            return Evolution(
                archs,
                population=config.population,
                generations=config.generations,
                parents=config.parents,
                mutation_probability=config.mutation_probability,
                seed=seed,
            )
        case "random":
            return RandomSearch(archs, evaluations=evaluations, batch=config.population, seed=seed)
        case "pareto":
            return ParetoSearch(
                archs,
                costs,
                population=config.population,
                generations=config.generations,
                mutation_probability=config.mutation_probability,
                seed=seed,
            )
        case "local":
            return LocalSearch(archs, evaluations=evaluations, batch=config.population, seed=seed)
    if not isinstance(method, type) and all(hasattr(method, name) for name in SEARCHER_NAMES):
        _check_inside(getattr(method, "space", None), archs)
        searcher: AskTell = copy.deepcopy(method)  # so that a run that is started again begins with none of its scores
        return searcher
    made: AskTell = method(archs, seed=seed)
    if missing := [name for name in SEARCHER_NAMES if not hasattr(made, name)]:
        raise ValueError(
            f"search.method made a {type(made).__name__}, which has no `{missing[0]}`; see "
            "nasx.testing.SearcherContract"
        )
    return made


def _check_inside(own: Any, archs: ArchSet) -> None:
    """Raise ValueError where a searcher that was made over a set of its own draws from outside of what is searched."""
    if isinstance(own, Space | Feasible):
        for arch in own.with_fresh_counts().sample(0, _LOOKED_AT):
            checked_candidate(arch, archs)


def checked_candidate(arch: Arch, archs: ArchSet) -> Arch:
    """Return an architecture that a searcher asks for as the space has it; a ValueError says why it is outside."""
    if arch in archs:
        return archs.space.canonical(arch)
    try:
        archs.canonical(arch)
        why = "it is not among those to search"
    except (TypeError, ValueError) as error:
        why = str(error)
    raise ValueError(
        f"search.method asks for {arch!r}: {why}; have it draw from the architectures that are searched "
        "(`space.within(budget)`), or pass a function that makes the searcher from them"
    )


def evaluations_of(searcher: AskTell) -> int | None:
    """Return how many candidates a searcher will ask for at most, or None where one of a user's own does not say."""
    found = getattr(searcher, "evaluations", None)
    return found if isinstance(found, int) else None


def count_or_bound(archs: ArchSet) -> int:
    """Return how many architectures there are to search: exactly where they are few, else an upper bound."""
    low, high = archs.size_bounds
    # of a copy, so that its acceptance stays that of the draws
    return sum(1 for _ in archs.with_fresh_counts()) if low < high <= _COUNTED else high


def best_of(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the rows with the highest scores, best first, the earlier one of equals; failed ones never."""
    valid = [row for row in rows if not math.isnan(row["score"])]
    return sorted(valid, key=lambda row: -float(row["score"]))[:count]


def front_of(rows: Sequence[dict[str, Any]], score: str = "score") -> list[dict[str, Any]]:
    """Return the rows that no other beats in the score and in every cost (`costs`), the cheapest first."""
    valid = [row for row in rows if not math.isnan(row[score])]
    if not valid:
        return []
    ranks = nondominated_ranks(np.array([(-row[score], *row["costs"]) for row in valid]))
    front = [row for row, rank in zip(valid, ranks, strict=True) if rank == 0]
    return sorted(front, key=lambda row: tuple(row["costs"]))


def evenly_spaced(front: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return up to `count` rows of a front, its ends and others at equal steps between, the costliest first."""
    if len(front) <= count:
        return list(reversed(front))
    places = np.unique(np.linspace(0, len(front) - 1, count).round().astype(int))
    return [front[place] for place in reversed(places.tolist())]
