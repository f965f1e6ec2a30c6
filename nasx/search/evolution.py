"""The evolutionary search of SPOS (Guo et al., ECCV 2020), with its settings as defaults."""

import numpy as np

from nasx._arguments import whole_number
from nasx.arch import Arch
from nasx.search.searcher import NewCandidates, Searcher, check_probability
from nasx.space import ArchSet, Probability


class Evolution(Searcher):
    """Breed each generation from the best candidates so far, half by mutation and half by crossover.

    A generation has `population` candidates; the first generation is drawn uniformly. Each later generation is bred
    from the best `parents` of all candidates: `mutations` children of single parents, in which each gene is drawn again
    with `mutation_probability`, `crossovers` children of two parents (half a population of each by default), and
    uniform draws for the rest. All children are inside the budget of `space` by construction. `generations` counts the
    first; `seed` decides all draws. Source: the evolutionary search of SPOS.
    """

    def __init__(
        self,
        space: ArchSet,
        *,
        population: int = 50,
        generations: int = 20,
        parents: int = 10,
        mutations: int | None = None,
        crossovers: int | None = None,
        mutation_probability: Probability = 0.1,
        seed: int = 0,
    ) -> None:
        population, generations = whole_number("population", population), whole_number("generations", generations)
        super().__init__(space, evaluations=population * generations, seed=seed)
        self.population, self.parents = population, whole_number("parents", parents)
        self.mutations = population // 2 if mutations is None else whole_number("mutations", mutations)
        self.crossovers = population // 2 if crossovers is None else whole_number("crossovers", crossovers)
        self.mutation_probability = mutation_probability
        if self.parents < 1:
            raise ValueError(f"evolution needs at least one parent, but got {self.parents}")
        if self.mutations < 0 or self.crossovers < 0:
            raise ValueError(
                f"`mutations >= 0` and `crossovers >= 0` must hold, but got "
                f"(mutations={self.mutations}, crossovers={self.crossovers})"
            )
        if self.mutations + self.crossovers > population:
            raise ValueError(
                f"`mutations + crossovers <= population` must hold, but got "
                f"(mutations={self.mutations}, crossovers={self.crossovers}, population={population})"
            )
        check_probability(space, mutation_probability)

    def _generation_size(self, generation: int) -> int:
        return self.population

    def _propose(self, rng: np.random.Generator, generation: int, candidates: NewCandidates) -> None:
        parents = [scored.arch for scored in self.best(self.parents)]
        if not parents:
            return

        def mutant() -> Arch:
            return self.space.mutate(parents[int(rng.integers(len(parents)))], rng, self.mutation_probability)

        def cross() -> Arch:
            first, second = rng.choice(len(parents), size=2, replace=False)
            return self.space.crossover(parents[int(first)], parents[int(second)], rng)

        candidates.draw(self.mutations, mutant)
        if len(parents) > 1:
            candidates.draw(self.crossovers, cross)
