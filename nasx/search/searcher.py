"""What every searcher keeps: who was asked for, who scored what, and how new candidates are found."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nasx.arch import Arch
from nasx.space import ArchSet

_REDRAWS = 100  # for each candidate, before what is left is enumerated


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with its score (higher is better; NaN for one that failed) and the generation that it came in."""

    arch: Arch
    score: float
    generation: int


class Searcher(ABC):
    """Ask for candidates, score them anywhere in any order, tell the scores, until `done`.

    No architecture is asked for twice. `ask` returns the same candidates until they are told. A space that runs out
    ends the search normally. Candidates are a pure function of (seed, generation, scores told), so `state` needs no
    generator and a searcher restored from it goes on exactly as the first would have.
    """

    def __init__(self, space: ArchSet, *, evaluations: int, seed: int) -> None:
        if evaluations < 1:
            raise ValueError(f"a search needs at least one evaluation, but got {evaluations}")
        self.space, self.evaluations, self.seed = space, evaluations, seed
        self._history: dict[Arch, Scored] = {}
        self._pending: dict[Arch, None] = {}
        self._generation = -1
        self._exhausted = False

    @abstractmethod
    def _propose(self, rng: np.random.Generator, generation: int, fresh: "Fresh") -> None:
        """Draw a generation's candidates through `fresh`; uniform draws make up what is missing."""

    @abstractmethod
    def _generation_size(self, generation: int) -> int:
        """Return how many candidates a generation should have."""

    @property
    def done(self) -> bool:
        """Whether every evaluation was told, or the space holds no further architecture."""
        return not self._pending and (len(self._history) >= self.evaluations or self._exhausted)

    @property
    def generation(self) -> int:
        """Number of the generation that was asked for last, from 0; -1 before the first."""
        return self._generation

    @property
    def failed(self) -> int:
        """How many candidates were told NaN."""
        return sum(math.isnan(scored.score) for scored in self._history.values())

    @property
    def history(self) -> tuple[Scored, ...]:
        """Every candidate told, in the order in which they were asked for within a generation."""
        return tuple(self._history.values())

    def best(self, k: int = 1) -> list[Scored]:
        """Return the k best candidates, best first; ties go to the earlier one, failed ones never appear."""
        valid = [scored for scored in self._history.values() if not math.isnan(scored.score)]
        return sorted(valid, key=lambda scored: -scored.score)[:k]

    def ask(self) -> list[Arch]:
        """Return the candidates that wait for a score, a new generation of them once all were told."""
        if not self._pending and not self.done:
            self._generation += 1
            wanted = min(self._generation_size(self._generation), self.evaluations - len(self._history))
            rng = np.random.default_rng([self.seed, self._generation])
            fresh = Fresh(self.space, rng, wanted, self._history)
            self._propose(rng, self._generation, fresh)
            fresh.fill()
            self._pending = dict.fromkeys(fresh.found)
            self._exhausted = len(fresh.found) < wanted
        return list(self._pending)

    def tell(self, scores: Mapping[Arch, float]) -> None:
        """Record scores; NaN marks a candidate that failed, which ranks last and never becomes a parent.

        A ValueError names an architecture that was not asked for, or one told before with another score; then
        nothing is recorded.
        """
        for arch, score in scores.items():
            told = self._history.get(arch)
            if told is None and arch not in self._pending:
                raise ValueError(f"this architecture was not asked for: {dict(arch)}")
            if told is not None and not (told.score == score or (math.isnan(told.score) and math.isnan(score))):
                raise ValueError(f"this architecture was told {told.score} before and {score} now: {dict(arch)}")
        for arch in [arch for arch in self._pending if arch in scores]:
            self._history[arch] = Scored(arch, float(scores[arch]), self._generation)
            del self._pending[arch]

    def state(self) -> dict[str, Any]:
        """Return everything that was asked and told, as JSON values."""
        return {
            "generation": self._generation,
            "exhausted": self._exhausted,
            "pending": [dict(arch) for arch in self._pending],
            "history": [
                {"arch": dict(s.arch), "score": None if math.isnan(s.score) else s.score, "generation": s.generation}
                for s in self._history.values()
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned; a ValueError names an architecture that is not in the space."""
        history = [
            Scored(
                self.space.canonical(entry["arch"]),
                math.nan if entry["score"] is None else entry["score"],
                entry["generation"],
            )
            for entry in state["history"]
        ]
        self._history = {scored.arch: scored for scored in history}
        self._pending = {self.space.canonical(entries): None for entries in state["pending"]}
        self._generation, self._exhausted = state["generation"], state["exhausted"]


class Fresh:
    """Collects architectures that were never asked for, up to a number."""

    def __init__(self, space: ArchSet, rng: np.random.Generator, wanted: int, seen: Mapping[Arch, object]) -> None:
        self.found: list[Arch] = []
        self._space, self._rng, self._wanted = space, rng, wanted
        self._seen = set(seen)

    def draw(self, count: int, candidate: Callable[[], Arch]) -> None:
        """Add up to `count` unseen candidates, each redrawn a bounded number of times."""
        for _ in range(min(count, self._wanted - len(self.found))):
            for _ in range(_REDRAWS):
                if self._add(candidate()):
                    break

    def fill(self) -> None:
        """Make up the number with uniform draws, then with what enumeration finds, in a random order."""
        self.draw(self._wanted - len(self.found), lambda: self._space.sample(self._rng))
        if len(self.found) < self._wanted:  # a hundred draws in a row were seen: few are left to enumerate
            left = [arch for arch in self._space if arch not in self._seen]
            for i in self._rng.permutation(len(left))[: self._wanted - len(self.found)]:
                self._add(left[i])

    def _add(self, arch: Arch) -> bool:
        if arch in self._seen:
            return False
        self._seen.add(arch)
        self.found.append(arch)
        return True
