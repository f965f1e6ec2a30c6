"""Local search: climb to better neighbours, start again where there are none."""

from itertools import groupby

import numpy as np

from nasx._arguments import whole_number
from nasx.arch import Arch
from nasx.search.searcher import NewCandidates, Scored, Searcher
from nasx.space import ArchSet

_GENES = (0, 2, 4)  # that change, on average and at least one: inside a tight budget hardly one can change alone


class LocalSearch(Searcher):
    """Climb from random candidates to better neighbours, and start again where none is found (White et al., UAI 2021).

    A generation is `batch` candidates of `space`, and `evaluations` are made in all; `seed` decides all draws. The
    first generation is drawn uniformly, and its best is where the climb begins. Each later one holds neighbours of the
    best candidate of the climb, which differ from it in one gene; where the space or its budget leaves too few of them,
    in a few genes. After `patience` generations without a better candidate the next one is drawn uniformly, and another
    climb begins. A strong baseline where scores are cheap and neighbours have similar scores.
    """

    def __init__(
        self, space: ArchSet, *, evaluations: int = 1000, batch: int = 20, patience: int = 2, seed: int = 0
    ) -> None:
        super().__init__(space, evaluations=evaluations, seed=seed)
        self.batch, self.patience = whole_number("batch", batch), whole_number("patience", patience)
        if self.batch < 1:
            raise ValueError(f"a batch needs at least one candidate, but got {batch}")
        if self.patience < 1:
            raise ValueError(f"`patience >= 1` must hold, but got {patience}; it counts generations without progress")

    def _generation_size(self, generation: int) -> int:
        return self.batch

    def _propose(self, rng: np.random.Generator, generation: int, candidates: NewCandidates) -> None:
        top = self._summit()
        if top is None:
            return  # a start: uniform draws fill the generation
        genes = max(1, len(self.space.genes(top)))
        for expected in _GENES:
            self._add_neighbours(top, min(1.0, expected / genes), rng, candidates)

    def _add_neighbours(
        self, top: Arch, probability: float, rng: np.random.Generator, candidates: NewCandidates
    ) -> None:
        candidates.draw(self.batch, lambda: self.space.mutate(top, rng, probability))

    def _summit(self) -> Arch | None:
        """Return the best candidate of the climb under way, or None where a climb begins."""
        best: Scored | None = None
        stale = 0
        for _, members in groupby(self.history, key=lambda scored: scored.generation):
            # the earlier of equals, as everywhere; NaN is never above
            top = max((s for s in members if s.score == s.score), key=lambda s: s.score, default=None)
            if best is None or stale >= self.patience or (top is not None and top.score > best.score):
                best, stale = top, 0
            else:
                stale += 1
        return None if best is None or stale >= self.patience else best.arch
