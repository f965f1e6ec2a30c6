"""What a stage's work is handed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nasx.pipeline.events import OnEvent
from nasx.pipeline.machine import Machine
from nasx.pipeline.progress import Progress
from nasx.run import StageContext
from nasx.train import Group, pick_device

if TYPE_CHECKING:
    from nasx.pipeline.problem import Problem
    from nasx.run.checkpoints import Checkpoints


@dataclass(frozen=True, slots=True)
class Context:
    """A run's problem, the machine and the ranks that work on it, and this stage's place in the run directory.

    Work that was interrupted is called again with the same folder: what it finds in its journal and checkpoints it
    need not do again.
    """

    problem: "Problem[Any]"
    machine: Machine
    group: Group
    progress: Progress
    stage: StageContext
    on_event: OnEvent | None = None
    """Who watches the run; on the first rank alone."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The results of the stages that it reads."""
        return self.stage.inputs

    @property
    def directory(self) -> Path:
        """The stage's folder."""
        return self.stage.directory

    @property
    def checkpoints(self) -> "Checkpoints":
        """The stage's checkpoints."""
        return self.stage.checkpoints

    @property
    def seed(self) -> int:
        """The stage's own seed."""
        return self.problem.seed(self.name)

    @property
    def device(self) -> torch.device:
        """Where networks are computed."""
        return pick_device(self.machine.device)

    def show(self, done: float, total: float, note: str = "", *, of: str = "") -> None:
        """Show how much of the stage, or of a part of it, is done."""
        self.progress(f"{self.name} {of}".rstrip(), done, total, note)

    def stop_requested(self) -> bool:
        """Return whether any rank was asked to stop, on all ranks alike."""
        return self.group.any(self.stage.stop.requested)
