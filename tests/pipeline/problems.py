"""Problems, and contexts for their stages, that tests of runs share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nasx.cli import apply_settings
from nasx.pipeline.context import Context
from nasx.pipeline.image_sources import ImageSource, load_images
from nasx.pipeline.machine import Machine
from nasx.pipeline.problem import Problem
from nasx.pipeline.progress import Progress, silent
from nasx.pipeline.stages import RunStage
from nasx.pipeline.vit import ViTProblem
from nasx.run import Journal, StageContext, StopFlag
from nasx.train import ALONE
from recipes.glit.config import DIGITS, Config
from recipes.glit.problem import glit_problem


def glit(settings: Sequence[str] = (), config: Config = DIGITS) -> ViTProblem[Config]:
    """Return GLiT's search on the digits, with some settings changed."""
    changed = apply_settings(config, settings)
    return glit_problem(changed, load_images(ImageSource(changed.data, changed.seed)))


def stage_of(problem: Problem[Any], name: str) -> RunStage:
    """Return a problem's stage by its name."""
    return next(stage for stage in problem.stages() if stage.name == name)


def context_of(
    problem: Problem[Any],
    root: Path,
    name: str,
    inputs: Mapping[str, Any] | None = None,
    *,
    stop: StopFlag | None = None,
    progress: Progress = silent,
    processes: int = 1,
    journal: Any = None,
    group: Any = ALONE,
) -> Context:
    """Return what a stage's work is handed, outside of any run directory."""
    directory = root / name
    if journal is None:
        directory.mkdir(parents=True, exist_ok=True)
        journal = Journal(directory / "journal.jsonl")
    place = StageContext(name, inputs or {}, directory, root, journal, stop or StopFlag())
    return Context(problem, Machine(device="cpu", processes=processes), group, progress, place)
