"""Random search: uniform draws without repetition."""

import numpy as np

from nasx._arguments import whole_number
from nasx.search.searcher import NewCandidates, Searcher
from nasx.space import ArchSet


class RandomSearch(Searcher):
    """Draw candidates uniformly, in batches; the baseline that every search has to beat.

    `ask` gives `batch` architectures of `space` at a time, until `evaluations` are scored; `seed` decides the draws.
    """

    def __init__(self, space: ArchSet, *, evaluations: int = 1000, batch: int = 50, seed: int = 0) -> None:
        super().__init__(space, evaluations=evaluations, seed=seed)
        self.batch = whole_number("batch", batch)
        if self.batch < 1:
            raise ValueError(f"a batch needs at least one candidate, but got {self.batch}")

    def _generation_size(self, generation: int) -> int:
        return self.batch

    def _propose(self, rng: np.random.Generator, generation: int, candidates: NewCandidates) -> None:
        pass  # every candidate is one of the uniform draws that fill a generation
