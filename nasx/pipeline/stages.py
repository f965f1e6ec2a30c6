"""What a stage of a run is, and the architectures that a level searches.

A stage knows its name, the stages whose results it reads, the sections of the settings that it depends on, its work,
what that would cost, and what reports show of its result. `nasx.pipeline.compose` puts stages together.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nasx.pipeline.context import Context
from nasx.pipeline.estimate import Estimator, StageEstimate
from nasx.pipeline.networks import Result
from nasx.pipeline.stage_reports import StageReport, report_of_stage
from nasx.space import ArchSet

Inputs = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Level:
    """The architectures that a level searches, which may follow from the results of earlier stages (`needs`)."""

    archs: Callable[[Inputs], ArchSet]
    needs: tuple[str, ...] = ()


class RunStage(ABC):
    """A stage of a run; all are frozen dataclasses, and none keeps anything between calls."""

    name: str
    kind: ClassVar[str]
    """What reading a run back knows the stage by."""
    sections: ClassVar[tuple[str, ...]]
    """The sections of the settings that its result depends on."""
    fields: ClassVar[tuple[str, ...]] = ()
    """Single settings that its result depends on, whichever other stages their sections are of, as `retrain.start`."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """The earlier stages whose results it reads."""

    @abstractmethod
    def work(self, context: Context) -> Result:
        """Do the stage and return its result, a JSON value."""

    @abstractmethod
    def estimate(self, estimator: Estimator) -> StageEstimate:
        """Return what the stage would cost, with a result that stands for its own in the estimates of later stages."""

    def report(self, result: Any) -> StageReport:
        """Return what a summary says of the stage's result; of a kind that the library lacks, nothing by default."""
        return report_of_stage(self.kind, result)
