"""The search for a whole trade-off between score and costs: NSGA-II (Deb et al., IEEE TEVC 2002)."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nasx._arguments import canonical_in, whole_number
from nasx._numbers import check_probabilities
from nasx.arch import Arch
from nasx.cost import AdditiveCost, Cost, amount_of
from nasx.feasible import attainable
from nasx.search.searcher import NewCandidates, Scored, Searcher, check_probability
from nasx.space import ArchSet, Probability

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class ParetoSearch(Searcher):
    """Breed each generation from the candidates that no other beats in the score and in every cost (NSGA-II).

    The score passed to `tell` is maximised; `costs` are functions of an architecture, or one, computed here and
    minimised. `seed` decides all draws from `space`. The first generation is drawn uniformly. The parents of each later
    one are the `population` survivors of all candidates so far, by non-dominated rank and then by crowding distance
    (sections III-A and III-B), and each parent wins a binary tournament on the two. A child crosses two parents with
    `crossover_probability`; otherwise it is a mutant of one, in which each gene is drawn again with
    `mutation_probability`. All children are inside the space's budgets by construction, and candidates that failed are
    never parents. `generations` counts the first. `tell` also refuses an architecture of which a cost is no finite
    number, with a ValueError that names both.
    """

    def __init__(
        self,
        space: ArchSet,
        costs: Sequence[Cost] | Cost,
        *,
        population: int = 50,
        generations: int = 20,
        mutation_probability: Probability = 0.1,
        crossover_probability: float = 0.5,
        seed: int = 0,
    ) -> None:
        population, generations = whole_number("population", population), whole_number("generations", generations)
        if population < 1:
            raise ValueError(f"a population needs at least one candidate, but got {population}")
        super().__init__(space, evaluations=population * generations, seed=seed)
        self.costs, self.population = (costs,) if callable(costs) else tuple(costs), population
        self.mutation_probability, self.crossover_probability = mutation_probability, crossover_probability
        self._known_costs: dict[Arch, tuple[float, ...]] = {}
        if not self.costs:
            raise ValueError("a Pareto search needs at least one cost beside the score; for none, use Evolution")
        check_probability(space, mutation_probability)
        check_probabilities(crossover_probability, "crossover_probability")

    def costs_of(self, arch: Arch) -> tuple[float, ...]:
        """Return an architecture's costs, in the order of `costs`; a ValueError names one that is no finite number."""
        if arch not in self._known_costs:
            found = canonical_in(self.space.space, arch)
            self._known_costs[found] = tuple(amount_of(cost, found) for cost in self.costs)
        return self._known_costs[arch]

    def front(self) -> list[Scored]:
        """Return the candidates that no other dominates, by the first cost (then the next), the earlier one first.

        Candidates that are equal in the score and in every cost are all in it; failed ones never are.
        """
        valid = self._valid
        ranks = nondominated_ranks(self._objectives(valid))
        front = [scored for scored, rank in zip(valid, ranks, strict=True) if rank == 0]
        return sorted(front, key=lambda scored: self.costs_of(scored.arch))

    def hypervolumes(
        self, reference_costs: Sequence[float] | float | None = None, reference_score: float = 0.0
    ) -> list[float]:
        """Return, for each generation, the hypervolume of all candidates scored up to it.

        The reference point is fixed, so the values never fall and compare between searches: `reference_score`, and
        `reference_costs`, one number for each of `costs`, or else the greatest cost that the space attains, budgets
        aside. Only candidates strictly better than it in everything count. A ValueError names a cost whose greatest
        value is not known.
        """
        costs = self._greatest_costs() if reference_costs is None else reference_costs
        reference = [-reference_score, *np.atleast_1d(costs).tolist()]
        valid = self._valid
        return [
            hypervolume(self._objectives([s for s in valid if s.generation <= generation]), reference)
            for generation in range(self.generation + 1)
        ]

    @property
    def _valid(self) -> list[Scored]:
        return [scored for scored in self.history if not math.isnan(scored.score)]

    def _objectives(self, candidates: Sequence[Scored]) -> Floats:
        rows = [(-scored.score, *self.costs_of(scored.arch)) for scored in candidates]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 1 + len(self.costs))

    def _greatest_costs(self) -> list[float]:
        greatest: list[float] = []
        for cost in self.costs:
            if not isinstance(cost, AdditiveCost):
                raise ValueError(f"the greatest value of {cost!r} is not known in this space; pass `reference_costs`")
            greatest.append(attainable(self.space.space, cost).high)
        return greatest

    def _check_told(self, arch: Arch, score: float) -> None:
        if not math.isnan(score):
            self.costs_of(arch)

    def _generation_size(self, generation: int) -> int:
        return self.population

    def _propose(self, rng: np.random.Generator, generation: int, candidates: NewCandidates) -> None:
        parents = self._survivors()
        if not parents:
            return

        def winner() -> Arch:  # survivors stand best first, so the lower of two places wins the tournament
            return parents[int(rng.integers(len(parents), size=2).min())]

        def child() -> Arch:
            first, second = winner(), winner()
            if first != second and rng.random() < self.crossover_probability:
                return self.space.crossover(first, second, rng)
            return self.space.mutate(first, rng, self.mutation_probability)

        candidates.draw(self.population, child)

    def _survivors(self) -> list[Arch]:
        """Return the best by the crowded comparison (section III-B), best first; ties go to the earlier one."""
        valid = self._valid
        objectives = self._objectives(valid)
        ranks = nondominated_ranks(objectives)
        crowding = np.zeros(len(valid))
        for rank in np.unique(ranks):
            crowding[ranks == rank] = crowding_distances(objectives[ranks == rank])
        order = np.lexsort((-crowding, ranks))
        return [valid[i].arch for i in order[: self.population]]


def nondominated_ranks(objectives: npt.ArrayLike) -> Ints:
    """Return each point's non-dominated rank: 0 on the Pareto front, 1 on the front without those, and so on.

    `objectives` is (n, m), finite and minimised; points that are equal share a rank (Deb et al., section III-A).
    """
    points = _points(objectives)
    order = np.lexsort(points.T[::-1])  # whoever dominates a point comes before it
    points = points[order]
    ranks = np.zeros(len(points), dtype=np.int64)
    for i, point in enumerate(points):
        before = points[:i]
        dominating = (before <= point).all(axis=1) & (before < point).any(axis=1)
        ranks[i] = ranks[:i][dominating].max(initial=-1) + 1  # the longest chain of dominators is the rank
    unordered = np.empty_like(ranks)
    unordered[order] = ranks
    return unordered


def crowding_distances(objectives: npt.ArrayLike) -> Floats:
    """Return the crowding distance of each point of one front, infinite at its ends (Deb et al., section III-B).

    `objectives` is (n, m), finite. A distance is the sum over objectives of the gap between a point's two neighbours,
    as a share of the front's extent; an objective in which all are equal adds nothing. Equal values keep their order,
    so of several equal points at an end only the outermost is infinite. Two points or fewer are all ends.
    """
    points = _points(objectives)
    if len(points) <= 2:
        return np.full(len(points), math.inf)
    distances = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        extent = ordered[-1] - ordered[0]
        if extent > 0:
            distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / extent
            distances[order[[0, -1]]] = math.inf
    return distances


def hypervolume(objectives: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Return the volume that points dominate below a reference point, exact but for rounding.

    `objectives` is (n, m), finite and minimised, `reference` (m,); a point that is not below it everywhere adds
    nothing. Two objectives take a sweep in n log n; each further one multiplies that by n (slicing by the last
    objective, Zitzler 2001), which suits small fronts.
    """
    points, corner = _points(objectives), np.asarray(reference, dtype=np.float64)
    if corner.shape != points.shape[1:]:
        raise ValueError(f"the reference must have {points.shape[1]} numbers, one an objective, but got {reference!r}")
    return _volume(points[(points < corner).all(axis=1)], corner)


def _volume(points: Floats, corner: Floats) -> float:
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points.min())
    last = len(corner) - 1
    points = points[np.argsort(points[:, last], kind="stable")]
    thickness = np.diff(np.append(points[:, last], corner[last]))
    if last == 1:
        return float(thickness @ (corner[0] - np.minimum.accumulate(points[:, 0])))
    return math.fsum(
        depth * _volume(points[:k, :last], corner[:last]) for k, depth in enumerate(thickness.tolist(), 1) if depth > 0
    )


def _points(objectives: npt.ArrayLike) -> Floats:
    points = np.asarray(objectives, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] < 1:
        raise ValueError(f"objectives must have the shape (points, objectives), but got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("objectives must be finite; leave candidates that failed out")
    return points
