"""What happens in a run, as values for those who watch it (`run(..., on_event=...)`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nasx.arch import Arch


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins, or goes on after an interruption."""

    stage: str
    kind: str
    """supernet, search, trust, retrain, inherit, finetune, refit or evaluation."""


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage is done; its result is in the run's journal."""

    stage: str
    kind: str
    seconds: float
    """Over all its attempts but those that were killed."""


@dataclass(frozen=True, slots=True)
class StepTaken:
    """A step of a supernet's training. After a restart the steps since the last checkpoint come again."""

    stage: str
    step: int
    total: int
    loss: float
    """NaN where the step was left out."""
    lr: float
    samples: int
    """Training samples of the step, of all processes together."""


@dataclass(frozen=True, slots=True)
class CandidateScored:
    """A candidate of a search has its score. Each is reported once, also after a restart, when its generation ends."""

    stage: str
    generation: int
    number: int
    """Of the candidates of the stage, counted from 0."""
    arch: Arch
    macs: float
    score: float
    """NaN where the evaluation failed."""
    best: float
    """The highest score so far; NaN while there is none."""


@dataclass(frozen=True, slots=True)
class NetworkTrained:
    """A network has been trained; `result` is what the stage keeps of it, such as `val_score` and `losses`."""

    stage: str
    number: int
    arch: Arch
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NetworkTested:
    """A network has been scored on the test samples; `result` is what the stage keeps, such as `test_score`."""

    stage: str
    name: str
    """What tables call the network, such as searched or random."""
    arch: Arch
    result: Mapping[str, Any]


Event = StageStarted | StageFinished | StepTaken | CandidateScored | NetworkTrained | NetworkTested
"""Anything that happens in a run."""

OnEvent = Callable[[Event], object]
"""Called with each event as it happens, in the process that owns the run directory. What it raises ends the run, which
can then be continued."""


def combined(*hooks: OnEvent | None) -> OnEvent | None:
    """Return a hook that calls several in turn; None where there is none."""
    given = [hook for hook in hooks if hook is not None]
    if len(given) < 2:
        return given[0] if given else None

    def call(event: Event) -> None:
        for hook in given:
            hook(event)

    return call
