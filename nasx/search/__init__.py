"""Searchers that are asked for architectures and told their scores."""

from nasx.search.evolution import Evolution
from nasx.search.pareto import ParetoSearch
from nasx.search.racing import Race, race
from nasx.search.random import RandomSearch
from nasx.search.searcher import Scored, Searcher

__all__ = ["Evolution", "ParetoSearch", "Race", "RandomSearch", "Scored", "Searcher", "race"]
