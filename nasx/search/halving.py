"""Successive halving: many candidates are trained for a part of the epochs, the better ones go on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

Candidate = TypeVar("Candidate")


@dataclass(frozen=True, slots=True)
class Rung:
    """How many candidates are trained, and up to which share of a whole training."""

    candidates: int
    share: float
    """Of the epochs of a whole training, in 0..1, counted from its beginning."""


class Halving:
    """A plan to train many networks and finish only the best few (Jamieson and Talwalkar 2016).

    Of `candidates` networks the best `keep` are finished. After each rung one in `factor` continues from its
    checkpoint, so nothing is trained twice. The share of a training that a rung ends at grows by the same factor, up to
    1 on the last one. `trainings` is what it costs, known beforehand, in whole trainings. Scores on the way are those
    of networks whose learning rate has not come down yet: the higher `first_share`, the better they tell how the
    training ends.

    Examples:
        >>> [(rung.candidates, rung.share) for rung in Halving(16, 2).rungs]
        [(16, 0.125), (8, 0.25), (4, 0.5), (2, 1.0)]
    """

    def __init__(self, candidates: int, keep: int, *, factor: float = 2.0, first_share: float | None = None) -> None:
        if not 1 <= keep <= candidates:
            raise ValueError(f"`1 <= keep <= candidates` must hold, but got (keep={keep}, candidates={candidates})")
        if not factor > 1:
            raise ValueError(f"`factor > 1` must hold, but got {factor}; 2 lets the better half go on")
        if first_share is not None and not 0 < first_share <= 1:
            raise ValueError(f"`0 < first_share <= 1` must hold, but got {first_share}")
        self.candidates, self.keep, self.factor = candidates, keep, factor
        counts = [candidates]
        while counts[-1] > keep:
            counts.append(max(keep, min(counts[-1] - 1, math.ceil(counts[-1] / factor))))
        last = len(counts) - 1
        first = factor**-last if first_share is None else first_share
        shares = [first ** ((last - rung) / last) if last else 1.0 for rung in range(len(counts))]
        self.rungs = tuple(Rung(count, share) for count, share in zip(counts, shares, strict=True))

    @property
    def trainings(self) -> float:
        """What the plan costs, in whole trainings: multiply by the epochs of one."""
        reached, total = 0.0, 0.0
        for rung in self.rungs:
            total += rung.candidates * (rung.share - reached)
            reached = rung.share
        return total

    def going_on(self, rung: int, scores: Mapping[Candidate, float]) -> list[Candidate]:
        """Return who is trained on after a rung, given everyone's score there, best first.

        Higher is better, ties go to the one that comes first in `scores`, and NaN, a candidate that failed, never goes
        on. After the last rung these are the best `keep`. A ValueError says that the scores are not of as many
        candidates as the rung has; where some failed earlier there may be fewer, never more.
        """
        if not 0 <= rung < len(self.rungs):
            raise ValueError(f"the plan has rungs 0 to {len(self.rungs) - 1}, but got {rung}")
        if not 0 < len(scores) <= self.rungs[rung].candidates:
            raise ValueError(f"rung {rung} has {self.rungs[rung].candidates} candidates, but got {len(scores)} scores")
        wanted = self.rungs[rung + 1].candidates if rung + 1 < len(self.rungs) else self.keep
        valid = [candidate for candidate, score in scores.items() if not math.isnan(score)]
        return sorted(valid, key=lambda candidate: -scores[candidate])[:wanted]
