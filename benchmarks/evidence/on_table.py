"""What can be answered from the table of trained networks alone: searchers, and ways to spend real training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nasx import Arch, Space
from nasx.arch import Value
from nasx.cost import Cost
from nasx.feasible import Feasible
from nasx.search import Evolution, Halving, LocalSearch, ParetoSearch, RandomSearch, Searcher, SurrogateSearch
from nasx.space import ArchSet, pick_genes
from recipes.glit.bench import Table

Floats = npt.NDArray[np.float64]
Rng = np.random.Generator

EVALUATIONS, BATCH = 24, 4


class Listed(Feasible):
    """The networks of a table, whose heads tell them apart; draws are those of any set, from a list and so faster."""

    def __init__(self, space: Space, archs: Sequence[Arch]) -> None:
        super().__init__(space, predicates=[frozenset(archs).__contains__])
        self._archs, self._place = list(archs), {arch: place for place, arch in enumerate(archs)}
        self._names = space.genes(archs[0])
        self._heads = np.array([[arch[name] for name in self._names] for arch in archs])

    def __contains__(self, arch: object) -> bool:
        return arch in self._place

    def sample(self, rng: Any, n: int | None = None) -> Any:
        """Draw one network, or `n`."""
        places = rng.integers(len(self._archs), size=n)
        return self._archs[int(places)] if n is None else [self._archs[place] for place in places]

    def mutate(self, arch: Mapping[str, Value], rng: Any, probability: Any = 0.1) -> Arch:
        """Draw a child with some genes drawn again."""
        genes = pick_genes(self._names, rng, probability)
        held = [name not in genes for name in self._names]
        own = self._heads[self._place[self.canonical(arch)]]
        return self._drawn((self._heads == own)[:, held], rng)

    def crossover(self, first: Mapping[str, Value], second: Mapping[str, Value], rng: Any) -> Arch:
        """Draw a child that has each gene from either parent."""
        mother, father = (self._heads[self._place[self.canonical(parent)]] for parent in (first, second))
        return self._drawn((self._heads == mother) | (self._heads == father), rng)

    def canonical(self, arch: Mapping[str, Value]) -> Arch:
        """Return the network as the table has it."""
        return arch if isinstance(arch, Arch) and arch in self._place else super().canonical(arch)

    def _drawn(self, fits: npt.NDArray[np.bool_], rng: Rng) -> Arch:
        places = np.flatnonzero(fits.all(axis=1))
        return self._archs[places[int(rng.integers(len(places)))]]


class Greedy(Searcher):
    """A searcher as a user would write it: neighbours of the three best so far, nothing else."""

    def __init__(self, space: ArchSet, *, evaluations: int, batch: int, seed: int) -> None:
        super().__init__(space, evaluations=evaluations, seed=seed)
        self.batch = batch

    def _generation_size(self, generation: int) -> int:
        return self.batch

    def _propose(self, rng: Rng, generation: int, fresh: Any) -> None:
        tops = [scored.arch for scored in self.best(3)]
        if tops:
            fresh.draw(self.batch, lambda: self.space.mutate(tops[int(rng.integers(len(tops)))], rng, 0.1))


def searchers(cost: Cost) -> Mapping[str, Callable[[ArchSet, int], Searcher]]:
    """Return the searchers that are compared, by name."""
    generations = EVALUATIONS // BATCH
    return {
        "random": lambda s, seed: RandomSearch(s, evaluations=EVALUATIONS, batch=BATCH, seed=seed),
        "evolution": lambda s, seed: Evolution(s, population=BATCH, generations=generations, parents=4, seed=seed),
        "local": lambda s, seed: LocalSearch(s, evaluations=EVALUATIONS, batch=BATCH, seed=seed),
        "Pareto": lambda s, seed: ParetoSearch(s, [cost], population=BATCH, generations=generations, seed=seed),
        "surrogate": lambda s, seed: SurrogateSearch(s, evaluations=EVALUATIONS, batch=BATCH, seed=seed),
        "a user's own": lambda s, seed: Greedy(s, evaluations=EVALUATIONS, batch=BATCH, seed=seed),
    }


def compare_searchers(table: Table, *, repeats: int = 200) -> list[dict[str, Any]]:
    """Return each searcher's regret after some evaluations: mean over repeats, with a 95 % interval.

    An evaluation is one training: the validation accuracy with a seed drawn for the repeat. Regret is the best mean
    test accuracy in the table minus that of the architecture with the best evaluation so far.
    """
    known = {arch: table.of(arch) for arch in table.archs}
    truth = {arch: float(np.mean([row.test_accuracy for row in rows])) for arch, rows in known.items()}
    best = max(truth.values())
    inside = Listed(table.settings.space, list(known))
    macs = {arch: rows[0].macs for arch, rows in known.items()}
    rows = []
    for name, make in searchers(lambda arch: macs[arch]).items():
        regrets = np.zeros((repeats, EVALUATIONS // BATCH))
        for repeat in range(repeats):
            rng = np.random.default_rng([repeat, 1])
            searcher = make(inside, repeat)
            seen: dict[Arch, float] = {}
            for generation in range(regrets.shape[1]):
                if not searcher.done:
                    asked = list(searcher.ask())
                    scores = {arch: known[arch][int(rng.integers(len(known[arch])))].val_accuracy for arch in asked}
                    searcher.tell(scores)
                    seen |= scores
                regrets[repeat, generation] = best - truth[max(seen, key=seen.__getitem__)]
        means, low, high = _with_interval(regrets)
        for generation, mean in enumerate(means):
            rows.append(
                {
                    "searcher": name,
                    "repeats": repeats,
                    "evaluations": BATCH * (generation + 1),
                    "regret": float(mean),
                    "low": float(low[generation]),
                    "high": float(high[generation]),
                }
            )
    return rows


def halve(table: Table, archs: Sequence[Arch], plan: Halving, seed: int) -> list[Arch]:
    """Return the networks that halving finishes, best first.

    Scores on the way are the table's: each network's validation accuracy after a part of its training.
    """
    going = list(archs)
    for number, rung in enumerate(plan.rungs):
        going = plan.going_on(number, {arch: score_at(table, arch, seed, rung.share) for arch in going})
    return going


def score_at(table: Table, arch: Arch, seed: int, share: float) -> float:
    """Return a network's validation accuracy after a share of its training, the last check before it."""
    (row,) = [row for row in table.of(arch) if row.seed == seed]
    check = max(1, int(share * len(row.val_curve) + 1e-9))
    return row.val_curve[check - 1]


def _with_interval(values: Floats) -> tuple[Floats, Floats, Floats]:
    means = values.mean(axis=0)
    half = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return means, means - half, means + half
