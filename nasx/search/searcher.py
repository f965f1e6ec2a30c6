"""What all searchers share: the candidates asked for, their scores, and how new candidates are drawn."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nasx._arguments import check_archs, checked_seed, whole_number
from nasx._numbers import check_probabilities, real_number
from nasx.arch import Arch
from nasx.feasible import NoneFound
from nasx.space import ArchSet, Probability, probability_of

logger = logging.getLogger(__name__)

_CHILD_TRIES = 10  # for each child, as SPOS allows on average; uniform draws make up for those that fail
_DRAW_TRIES = 100  # for each uniform draw, before the rest is enumerated
_BLANKS = 5  # uniform draws in a row that may find nothing inside further budgets
_ENUMERATED = 1_000_000  # largest space that is enumerated


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with its score."""

    arch: Arch
    """The architecture."""

    score: float
    """Higher is better; NaN for a candidate that failed."""

    generation: int
    """The generation that it came in, from 0."""


class Searcher(ABC):
    """Ask for candidates, score them anywhere in any order, tell the scores, until `done`.

    No architecture is asked for twice. `ask` returns the same candidates until all are scored. A search ends normally
    when its space is exhausted. Where further budgets or predicates let draws find too few, generations are smaller,
    and a warning says so once. Where they find no more at all, the search ends with a warning, or, before the first
    score, `ask` raises NoneFound. Candidates are a pure function of (seed, generation, scores), so `state` stores no
    random generator, and a searcher restored from it continues exactly as the first would have.

    A subclass says what a generation is. `space` is where candidates come from, `evaluations` how many scores end the
    search, and `seed` decides all draws. A TypeError refuses a list of architectures as `space`.
    """

    def __init__(self, space: ArchSet, *, evaluations: int, seed: int) -> None:
        check_archs(space, f"{type(self).__name__}(space, ...)")
        self.space, self.evaluations, self.seed = space, whole_number("evaluations", evaluations), checked_seed(seed)
        if self.evaluations < 1:
            raise ValueError(f"a search needs at least one evaluation, but got {self.evaluations}")
        self._asked: dict[Arch, Scored | None] = {}  # None: waits for its score
        self._generation = -1
        self._exhausted, self._warned = False, False

    @abstractmethod
    def _propose(self, rng: np.random.Generator, generation: int, candidates: "NewCandidates") -> None:
        """Draw a generation's candidates with `candidates.draw`; uniform draws make up what is missing."""

    @abstractmethod
    def _generation_size(self, generation: int) -> int:
        """Return how many candidates a generation should have."""

    def _check_told(self, arch: Arch, score: float) -> None:  # noqa: B027 - most searchers look at scores alone
        """Raise ValueError for a candidate that a searcher cannot rank by its score and what else it looks at."""

    @property
    def done(self) -> bool:
        """Whether all evaluations are scored, the space is exhausted, or no more was found in it."""
        return not self._waiting and (len(self._asked) >= self.evaluations or self._exhausted)

    @property
    def _waiting(self) -> list[Arch]:
        return [arch for arch, scored in self._asked.items() if scored is None]

    @property
    def generation(self) -> int:
        """Number of the generation that was asked for last, from 0; -1 before the first."""
        return self._generation

    @property
    def failed(self) -> int:
        """Number of candidates that scored NaN."""
        return sum(math.isnan(scored.score) for scored in self.history)

    @property
    def history(self) -> tuple[Scored, ...]:
        """All scored candidates, in the order in which they were asked for."""
        return tuple(scored for scored in self._asked.values() if scored is not None)

    def best(self, k: int = 1) -> list[Scored]:
        """Return the k best candidates, best first; ties go to the earlier one, failed ones never appear."""
        valid = [scored for scored in self.history if not math.isnan(scored.score)]
        return sorted(valid, key=lambda scored: -scored.score)[:k]

    def ask(self) -> list[Arch]:
        """Return the candidates that wait for a score, or a new generation once all are scored."""
        if not self._waiting and not self.done:
            self._start(self._generation + 1)
        return self._waiting

    def _start(self, generation: int) -> None:
        wanted = min(self._generation_size(generation), self.evaluations - len(self._asked))
        rng = np.random.default_rng([self.seed, generation])
        candidates = NewCandidates(self.space, rng, wanted, self._asked)
        self._propose(rng, generation, candidates)
        candidates.fill()
        found, counts = len(candidates.found), f"after {len(self._asked)} of {self.evaluations} evaluations"
        if not found and not candidates.exhausted:
            if not self._asked:
                raise NoneFound(f"no candidate was found: {candidates.obstacle}") from candidates.none_found
            logger.warning("the search ends %s, for no new candidate was found: %s", counts, candidates.obstacle)
            self._exhausted = True
            return
        if found < wanted and not candidates.exhausted and not self._warned:
            self._warned = True
            logger.warning(
                "generation %d has %d candidates in place of %d, %s: %s",
                generation, found, wanted, counts, candidates.obstacle,
            )  # fmt: skip
        self._generation, self._exhausted = generation, candidates.exhausted
        self._asked.update(dict.fromkeys(candidates.found))

    def tell(self, scores: Mapping[Arch, float]) -> None:
        """Record scores; NaN marks a candidate that failed, which ranks last and never becomes a parent.

        Raises ValueError, and records nothing, for an architecture that was not asked for, one that has another score
        already, or a score that is not a number.
        """
        told = {arch: _checked_score(arch, score) for arch, score in scores.items()}
        for arch, score in told.items():
            if arch not in self._asked:
                raise ValueError(f"this architecture was not asked for: {dict(arch)}")
            earlier = self._asked[arch]
            if earlier is not None and not (
                earlier.score == score or (math.isnan(earlier.score) and math.isnan(score))
            ):
                raise ValueError(f"this architecture scored {earlier.score} before and {score} now: {dict(arch)}")
            self._check_told(arch, score)
        for arch in self._waiting:
            if arch in told:
                self._asked[arch] = Scored(arch, told[arch], self._generation)

    def state(self) -> dict[str, Any]:
        """Return all candidates and scores as JSON values."""
        asked: list[dict[str, Any]] = []
        for arch, scored in self._asked.items():
            asked.append({"arch": dict(arch)})
            if scored is not None:
                score = None if math.isnan(scored.score) else scored.score
                asked[-1] |= {"score": score, "generation": scored.generation}
        return {"seed": self.seed, "generation": self._generation, "exhausted": self._exhausted, "asked": asked}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned; ValueError for another seed or an architecture outside the space."""
        if state["seed"] != self.seed:
            raise ValueError(f"the state is of a search with seed {state['seed']}, but this one's is {self.seed}")
        asked: dict[Arch, Scored | None] = {}
        for entry in state["asked"]:
            arch = self.space.canonical(entry["arch"])
            if "score" in entry:
                score = math.nan if entry["score"] is None else entry["score"]
                asked[arch] = Scored(arch, score, entry["generation"])
            else:
                asked[arch] = None
        self._asked, self._generation, self._exhausted = asked, state["generation"], state["exhausted"]


def _checked_score(arch: Arch, score: Any) -> float:
    number = real_number(score)
    if number is None or math.isinf(number):
        raise ValueError(f"a score must be a finite number, or NaN for a failure, but got {score!r}: {dict(arch)}")
    return float(number)


class NewCandidates:
    """Collects a number of architectures that were not asked for before."""

    def __init__(self, space: ArchSet, rng: np.random.Generator, wanted: int, seen: Mapping[Arch, object]) -> None:
        self.found: list[Arch] = []
        self.exhausted = False
        """Whether the whole space was enumerated, and nothing is left beside `found`."""
        self.none_found: NoneFound | None = None
        """What the last draw said, where it found nothing."""
        self._space, self._rng, self._wanted = space, rng, wanted
        self._seen = set(seen)

    @property
    def obstacle(self) -> str:
        """Why there are no more candidates."""
        if self.none_found:
            return str(self.none_found)
        return f"{_DRAW_TRIES} draws in a row were asked for before, so few are left; ask for fewer evaluations"

    def draw(self, count: int, candidate: Callable[[], Arch], tries: int = _CHILD_TRIES, *, blanks: int = 1) -> int:
        """Add up to `count` unseen candidates, each drawn at most `tries` times, and return how many it found.

        It ends early after `blanks` draws in a row that found nothing inside further budgets (NoneFound).
        """
        before, blank = len(self.found), 0
        for _ in range(min(count, self._wanted - before)):
            for _ in range(tries):
                try:
                    drawn = candidate()
                except NoneFound as error:
                    self.none_found, blank = error, blank + 1
                    if blank == blanks:
                        return len(self.found) - before
                    continue
                self.none_found, blank = None, 0
                if self._add(drawn):
                    break
        return len(self.found) - before

    def fill(self) -> None:
        """Make up the number with uniform draws, then with what enumeration finds, in a random order."""
        missing = self._wanted - len(self.found)
        self.draw(missing, lambda: self._space.sample(self._rng), _DRAW_TRIES, blanks=_BLANKS)
        few = self._space.size_bounds[1] <= _ENUMERATED
        if len(self.found) < self._wanted and few:  # a hundred draws in a row were seen: few are left to enumerate
            left = [arch for arch in self._space if arch not in self._seen]
            for i in self._rng.permutation(len(left))[: self._wanted - len(self.found)]:
                self._add(left[i])
            self.exhausted = len(self.found) < self._wanted

    def _add(self, arch: Arch) -> bool:
        if arch in self._seen:
            return False
        self._seen.add(arch)
        self.found.append(arch)
        return True


def check_probability(space: ArchSet, mutation_probability: Probability) -> None:
    """Raise ValueError for an invalid mutation probability; a mapping must cover every gene of the space."""
    check_probabilities(mutation_probability, "mutation_probability", positive=True)
    for name, choice in space.space.walk():
        if len(choice.options) > 1:
            probability_of(name, mutation_probability)
