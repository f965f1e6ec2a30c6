"""Which networks a supernet's steps train, as the settings ask."""

import math

from nasx.cost import AdditiveCost, Budget
from nasx.pipeline.config import SupernetTraining
from nasx.space import ArchSet
from nasx.train import FairPaths, Paths, SandwichPaths, StratifiedPaths, UniformArchPaths, UniformPaths


def supernet_paths(config: SupernetTraining, archs: ArchSet, cost: AdditiveCost | None, seed: int) -> Paths:
    """Return the paths that a configuration asks for, over a level's space or what of it is searched.

    Strata are bins of the cost that the search is bounded by, between the bounds. A ValueError says why a space has no
    such paths.
    """
    try:
        return _paths(config, archs, cost, seed)
    except ValueError as error:
        reason = str(error).replace("use UniformPaths", "write supernet.paths=uniform")
        raise ValueError(f"supernet.paths={config.paths} does not fit this space: {reason}") from error


def _paths(config: SupernetTraining, archs: ArchSet, cost: AdditiveCost | None, seed: int) -> Paths:
    space = archs.space
    match config.paths:
        case "uniform":
            return UniformPaths(space, seed)
        case "architectures":
            return UniformArchPaths(space, seed)
        case "budget":
            return UniformArchPaths(archs, seed)
        case "stratified":
            return paths_across(archs, _additive(cost), config.strata, seed)
        case "sandwich":
            return SandwichPaths(space, _additive(cost), seed)
        case "fair":
            return FairPaths(space, seed)


def paths_across(archs: ArchSet, cost: AdditiveCost, bins: int, seed: int) -> StratifiedPaths:
    """Return paths through bins of a cost, between the bounds that architectures have on it."""
    bounds = next((budget for budget in archs.budgets if budget.cost == cost), Budget(cost))
    low, high = (int(bound) if math.isfinite(bound) else None for bound in (bounds.lower, bounds.upper))
    return StratifiedPaths(archs.space, cost, bins, seed, at_least=low, at_most=high)


def _additive(cost: AdditiveCost | None) -> AdditiveCost:
    if cost is None:
        raise ValueError(
            "they need a cost that adds up over the parts of a network, which none of its costs does; choose uniform, "
            "architectures or budget"
        )
    return cost
