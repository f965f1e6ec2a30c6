"""What a report says, as plain values: runs fill these in, tables and figures read them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nasx.comparison import Difference, Interval


@dataclass(frozen=True, slots=True)
class BlockDrawing:
    """A box in the picture of an architecture: a title, short lines below it, a shade from 0 (light) to 1 (dark)."""

    title: str
    shade: float
    lines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.shade <= 1:
            raise ValueError(f"a shade lies in 0..1, but the block {self.title!r} got {self.shade}")


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """A trained network; counts are plain numbers, accuracies (or other scores) are None where not measured.

    `versus_found` is how much better (above 0) or worse it is on the test samples than the network that was found,
    `blocks` its picture, and `costs` what else the budgets bound, by unit.
    """

    label: str
    params: int | None
    macs: int | None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    val_interval: Interval | None = None
    test_interval: Interval | None = None
    versus_found: Difference | None = None
    blocks: tuple[BlockDrawing, ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)


def cost_units(networks: Iterable[NetworkRow]) -> list[str]:
    """Return the units of what the budgets of some networks bound beside parameters and MACs."""
    return list(dict.fromkeys(unit for network in networks for unit in network.costs))


@dataclass(frozen=True, slots=True)
class StageRow:
    """How long a stage of the run took, with a remark such as the number of candidates; None while it is not done."""

    name: str
    seconds: float | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """Losses over training steps; curves of the same panel share one pair of axes."""

    label: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    panel: str = ""

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ValueError(
                f"a curve has a value for each step, but {self.label!r} got "
                f"{len(self.steps)} steps and {len(self.values)} values"
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """An architecture that a search scored: its generation, its cost in MACs, its score, and its choices by name.

    The score is None where the evaluation failed.
    """

    generation: int
    cost: float
    score: float | None
    arch: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchHistory:
    """The candidates of one search stage, in the order in which they were scored.

    `best_kept` is how many of the best so far a generation is bred from, `options` the values of every choice of the
    space in its order, and `budget` the bounds on the cost, None where one is open.
    """

    name: str
    candidates: tuple[Candidate, ...]
    best_kept: int = 10
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    budget: tuple[float | None, float | None] = (None, None)

    @property
    def scored(self) -> tuple[Candidate, ...]:
        """The candidates that did not fail."""
        return tuple(candidate for candidate in self.candidates if candidate.score is not None)

    @property
    def best(self) -> Candidate | None:
        """The candidate with the highest score, the earliest of equals; None where none has a score."""
        return max(self.scored, key=_score, default=None)

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The Pareto front: candidates that no other beats in both score and cost, the cheapest first."""
        found: list[Candidate] = []
        for candidate in sorted(self.scored, key=lambda c: (c.cost, -_score(c))):
            if not found or _score(candidate) > _score(found[-1]):
                found.append(candidate)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class RankingPlot:
    """How a supernet's scores and stand-alone accuracies agree: entry i of each column is about one architecture.

    Scores and accuracies lie in 0..1, costs are in MACs; `verdict` says in words what the agreement is worth. `tau` is
    Kendall's rank correlation of the two, `ceiling` that of two trainings with different seeds, where it was measured.
    """

    name: str
    scores: tuple[float, ...]
    accuracies: tuple[float, ...]
    costs: tuple[float, ...]
    verdict: str = ""
    labels: tuple[str, ...] = ()
    tau: Interval | None = None
    ceiling: Interval | None = None

    def __post_init__(self) -> None:
        if not len(self.scores) == len(self.accuracies) == len(self.costs):
            raise ValueError(
                f"each architecture has a score, an accuracy and a cost, but {self.name!r} got "
                f"{len(self.scores)}, {len(self.accuracies)} and {len(self.costs)} of them"
            )


@dataclass(frozen=True, slots=True)
class Highlight:
    """A number at the top of a report, with what it is and a short note."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that the report of a run shows; what is empty is left out.

    `networks` starts with the one that the search found, the others are what it is compared with. `searched`, `found`
    and `incidents` are sentences, `state` says how far the run is. `config`, `split`, `versions` and `hardware` are
    nested mappings of JSON values; `command` starts the run again.
    """

    title: str
    networks: tuple[NetworkRow, ...] = ()
    state: str = ""
    highlights: tuple[Highlight, ...] = ()
    searched: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    stages: tuple[StageRow, ...] = ()
    curves: tuple[Curve, ...] = ()
    searches: tuple[SearchHistory, ...] = ()
    rankings: tuple[RankingPlot, ...] = ()
    incidents: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    seed: int | None = None
    shade_legend: str = ""
    metric: str = "accuracy"
    """What the scores of networks and candidates are."""


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run beside others: its name, its report, and how much better what it found is than what the first run found.

    `difference` is None for the first run, and where the two were not tested on the same samples.
    """

    name: str
    report: Report
    difference: Difference | None = None


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None
    return candidate.score
