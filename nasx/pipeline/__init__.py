"""Searches as resumable runs: a task, a problem, and `run`, from Python as from a command line.

Names are imported when they are asked for, because most need torch and command lines answer before it is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasx.pipeline.config import RunConfig
    from nasx.pipeline.errors import CorruptWeights, Diverged, ExportFailed, NotEnoughSpace, OutOfMemory, Refused
    from nasx.pipeline.images import ImageTask
    from nasx.pipeline.machine import Machine
    from nasx.pipeline.planning import plan
    from nasx.pipeline.presentation import Presentation
    from nasx.pipeline.problem import Baseline, Problem
    from nasx.pipeline.run_report import report
    from nasx.pipeline.run_status import RunStatus, StageStatus, status
    from nasx.pipeline.runner import FrontNetwork, SearchResult, run
    from nasx.pipeline.task import Task

__all__ = [
    "Baseline",
    "CorruptWeights",
    "Diverged",
    "ExportFailed",
    "FrontNetwork",
    "ImageTask",
    "Machine",
    "NotEnoughSpace",
    "OutOfMemory",
    "Presentation",
    "Problem",
    "Refused",
    "RunConfig",
    "RunStatus",
    "SearchResult",
    "StageStatus",
    "Task",
    "plan",
    "report",
    "run",
    "status",
]

_MODULES = {
    "Baseline": "problem",
    "CorruptWeights": "errors",
    "Diverged": "errors",
    "ExportFailed": "errors",
    "FrontNetwork": "runner",
    "ImageTask": "images",
    "Machine": "machine",
    "NotEnoughSpace": "errors",
    "OutOfMemory": "errors",
    "Presentation": "presentation",
    "Problem": "problem",
    "Refused": "errors",
    "RunConfig": "config",
    "RunStatus": "run_status",
    "SearchResult": "runner",
    "StageStatus": "run_status",
    "Task": "task",
    "plan": "planning",
    "report": "run_report",
    "run": "runner",
    "status": "run_status",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
