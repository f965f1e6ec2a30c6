"""A model of the score, fitted on what was scored, that says which architectures to try next."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from nasx._arguments import whole_number
from nasx.arch import Arch, Value
from nasx.feasible import NoneFound
from nasx.search.searcher import NewCandidates, Searcher
from nasx.space import ArchSet

Floats = npt.NDArray[np.float64]

_STRENGTHS = np.logspace(-3, 3, 13)  # of the penalty, among which the error of leaving one out decides
_FEWEST = 4  # scores without which there is no model


class Surrogate:
    """Ridge regression of `scores` on choices: every value of every choice adds its own share.

    At least four finite scores are needed, else a ValueError. The penalty is the one with the least squared error where
    each architecture in turn is left out. `predict` returns means and standard deviations, `sample` scores that could
    be the true ones, both in the unit of the scores.
    """

    def __init__(self, scores: Mapping[Arch, float]) -> None:
        archs, values = list(scores), np.array(list(scores.values()), dtype=np.float64)
        if len(archs) < _FEWEST or not np.isfinite(values).all():
            raise ValueError(f"a surrogate needs at least {_FEWEST} finite scores, but got {values.tolist()}")
        self._columns = {pair: i for i, pair in enumerate(dict.fromkeys(p for arch in archs for p in arch.items()))}
        self._archs, self._values = archs, values
        self.mean = float(values.mean())
        inputs = self._one_hot(archs, self._columns)
        self._centre = inputs.mean(axis=0)
        left, spread, _ = np.linalg.svd(inputs - self._centre, full_matrices=False)
        targets = values - self.mean
        errors = [self._error(left, spread, targets, strength) for strength in _STRENGTHS]
        self.strength = float(_STRENGTHS[int(np.argmin(errors))])
        self.noise = float(np.sqrt(min(errors)))
        """Standard deviation of a score around what the model expects of an architecture that was left out."""

    @staticmethod
    def _error(left: Floats, spread: Floats, targets: Floats, strength: float) -> float:
        share = spread**2 / (spread**2 + strength)
        fitted = left @ (share * (left.T @ targets))
        own = (left**2) @ share + 1 / len(targets)  # what each target adds to its own fit, through the mean too
        return float(np.mean(((targets - fitted) / (1 - np.minimum(own, 0.999))) ** 2))

    def predict(self, archs: Sequence[Arch]) -> tuple[Floats, Floats]:
        """Return the expected scores of architectures, (n,), and their standard deviations, (n,)."""
        inputs, weights, root = self._posterior(archs)
        return self.mean + inputs @ weights, np.sqrt(((inputs @ root) ** 2).sum(axis=1))

    def sample(self, archs: Sequence[Arch], rng: np.random.Generator, n: int) -> Floats:
        """Draw scores (n, architectures) from what is possible given those that were seen, noise aside."""
        inputs, weights, root = self._posterior(archs)
        drawn = weights[:, None] + root @ rng.standard_normal((root.shape[1], n))
        return self.mean + (inputs @ drawn).T

    def _posterior(self, archs: Sequence[Arch]) -> tuple[Floats, Floats, Floats]:
        """Return the inputs of architectures, the weights, and a root of their covariance."""
        known = len(self._columns)
        new = dict.fromkeys(pair for arch in archs for pair in arch.items() if pair not in self._columns)
        columns = self._columns | {pair: known + i for i, pair in enumerate(new)}
        centre = np.concatenate([self._centre, np.zeros(len(new))])
        seen = self._one_hot(self._archs, columns) - centre
        gram = seen.T @ seen + self.strength * np.eye(len(columns))
        values, vectors = np.linalg.eigh(gram)
        weights = vectors @ ((vectors.T @ (seen.T @ (self._values - self.mean))) / values)
        return self._one_hot(archs, columns) - centre, weights, self.noise * vectors / np.sqrt(values)

    @staticmethod
    def _one_hot(archs: Sequence[Arch], columns: Mapping[tuple[str, Value], int]) -> Floats:
        inputs = np.zeros((len(archs), len(columns)))
        for row, arch in enumerate(archs):
            for pair in arch.items():
                if pair in columns:
                    inputs[row, columns[pair]] = 1
        return inputs


class SurrogateSearch(Searcher):
    """Try the architectures that a model of the scores so far predicts to be best (`Surrogate`).

    A generation is `batch` candidates of `space`, and `evaluations` are made in all; `seed` decides all draws. The
    first generation is drawn uniformly. For each later one the model is fitted on all scores; each of its candidates is
    the best of a pool by scores drawn from what the model holds possible (Thompson sampling), so that choices of which
    little is known are tried too. The pool holds `pool` architectures, half of them uniform draws, half children of the
    ten best so far. It needs few scores, and pays where each is expensive, as real training is.
    """

    def __init__(
        self, space: ArchSet, *, evaluations: int = 100, batch: int = 10, pool: int = 500, seed: int = 0
    ) -> None:
        super().__init__(space, evaluations=evaluations, seed=seed)
        self.batch, self.pool = whole_number("batch", batch), whole_number("pool", pool)
        if self.batch < 1:
            raise ValueError(f"a batch needs at least one candidate, but got {batch}")
        if self.pool < self.batch:
            raise ValueError(f"`pool >= batch` must hold, but got (pool={pool}, batch={batch})")

    def _generation_size(self, generation: int) -> int:
        return self.batch

    def _propose(self, rng: np.random.Generator, generation: int, candidates: NewCandidates) -> None:
        scores = {scored.arch: scored.score for scored in self.best(len(self.history))}
        if len(scores) < _FEWEST:
            return
        pool = self._pool(rng)
        if not pool:
            return
        model = Surrogate(scores)
        for possible in model.sample(pool, rng, self.batch):
            # the best that no earlier draw has taken
            for at in np.argsort(-possible, kind="stable")[: self.batch]:
                if candidates.draw(1, partial(pool.__getitem__, int(at)), tries=1):
                    break

    def _pool(self, rng: np.random.Generator) -> list[Arch]:
        parents = [scored.arch for scored in self.best(10)]
        found: dict[Arch, None] = {}
        asked = {scored.arch for scored in self.history}
        try:
            for number in range(self.pool):
                if number % 2 == 0:
                    arch = self.space.sample(rng)
                elif number % 4 == 1 or len(parents) < 2:
                    arch = self.space.mutate(parents[int(rng.integers(len(parents)))], rng, 0.1)
                else:
                    first, second = rng.choice(len(parents), size=2, replace=False)
                    arch = self.space.crossover(parents[int(first)], parents[int(second)], rng)
                if arch not in asked:
                    found.setdefault(arch)
        except NoneFound:  # further budgets that nearly nothing meets
            pass
        return list(found)
