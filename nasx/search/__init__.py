"""Searchers with `ask` and `tell`, racing of candidates, and successive halving."""

from nasx.search.evolution import Evolution
from nasx.search.halving import Halving, Rung
from nasx.search.local import LocalSearch
from nasx.search.pareto import ParetoSearch
from nasx.search.racing import Race, race
from nasx.search.random import RandomSearch
from nasx.search.searcher import Scored, Searcher
from nasx.search.surrogate import Surrogate, SurrogateSearch

__all__ = [
    "Evolution",
    "Halving",
    "LocalSearch",
    "ParetoSearch",
    "Race",
    "RandomSearch",
    "Rung",
    "Scored",
    "Searcher",
    "Surrogate",
    "SurrogateSearch",
    "race",
]
