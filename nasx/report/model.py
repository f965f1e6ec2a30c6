"""What a report says, as plain values: recipes fill these in, tables and figures read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """A trained network; counts are plain numbers, accuracies (or other scores) are None where not measured."""

    label: str
    params: int | None
    macs: int | None
    val_accuracy: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class StageRow:
    """How long a stage of the run took, with a remark such as the number of candidates."""

    name: str
    seconds: float
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
    """An architecture that a search scored: its generation, its cost in MACs, its accuracy in 0..1."""

    generation: int
    cost: float
    score: float


@dataclass(frozen=True, slots=True)
class SearchHistory:
    """The candidates of one search stage, in the order in which they were scored."""

    name: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class RankingPlot:
    """How a supernet's scores and stand-alone accuracies agree: entry i of each column is about one architecture.

    Scores and accuracies lie in 0..1, costs are in MACs; `verdict` says in words what the agreement is worth.
    """

    name: str
    scores: tuple[float, ...]
    accuracies: tuple[float, ...]
    costs: tuple[float, ...]
    verdict: str = ""

    def __post_init__(self) -> None:
        if not len(self.scores) == len(self.accuracies) == len(self.costs):
            raise ValueError(
                f"each architecture has a score, an accuracy and a cost, but {self.name!r} got "
                f"{len(self.scores)}, {len(self.accuracies)} and {len(self.costs)} of them"
            )


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
class Report:
    """All that the report of a finished run shows; what is empty is left out.

    `networks` starts with the one that the search found, the others are what it is compared with. `config`, `split`
    and `versions` are nested mappings of JSON values.
    """

    title: str
    networks: tuple[NetworkRow, ...]
    stages: tuple[StageRow, ...] = ()
    curves: tuple[Curve, ...] = ()
    searches: tuple[SearchHistory, ...] = ()
    rankings: tuple[RankingPlot, ...] = ()
    blocks: tuple[BlockDrawing, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    shade_legend: str = ""
    metric: str = "accuracy"
    """What the scores of networks and candidates are."""
