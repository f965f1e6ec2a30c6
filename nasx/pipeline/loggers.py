"""Runs in TensorBoard, Weights & Biases and MLflow, each through its own library (`--log`, `run(..., log=...)`).

Losses are logged as means of up to 20 steps. What a library raises while a run goes on, as where its server does not
answer, is a warning: the run goes on, and after three failures in a row without its log.
"""

import json
import logging
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from nasx.cli import validation_message
from nasx.pipeline.errors import Refused
from nasx.pipeline.events import (
    CandidateScored,
    Event,
    NetworkTested,
    NetworkTrained,
    OnEvent,
    StageFinished,
    StageStarted,
    StepTaken,
)
from nasx.run import Interrupted, write_text

Log = Literal["tensorboard", "wandb", "mlflow"]
Ending = Literal["finished", "stopped", "failed"]
LOGS: tuple[Log, ...] = get_args(Log)

_STEPS = 20  # whose mean is one point
_FAILURES = 3  # in a row, after which nothing is logged any more: each may have waited for minutes

logger = logging.getLogger(__name__)


class Sink(ABC):
    """Where numbers go: what each library is asked for."""

    @abstractmethod
    def write(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Log numbers of a stage at a step; steps of a stage that come again replace those of before."""

    @abstractmethod
    def close(self, ending: Ending) -> None:
        """Write what is left, and how the run ended."""


class TensorBoard(Sink):
    """Event files in a folder `tensorboard` of the run directory, a TensorBoard run for each stage."""

    def __init__(self, directory: Path) -> None:
        self._library = _library("torch.utils.tensorboard", "tensorboard")
        self._folder, self._writers = directory / "tensorboard", dict[str, Any]()

    def write(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Log numbers; the first step of a process hides what an earlier one logged from it on."""
        if stage not in self._writers:
            self._writers[stage] = self._library.SummaryWriter(str(self._folder / stage), purge_step=step)
        for name, value in values.items():
            self._writers[stage].add_scalar(name, value, step)

    def close(self, ending: Ending) -> None:
        """Write what is left."""
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases(Sink):
    """The active run of Weights & Biases, which stays open, else one that is continued when the search is.

    WANDB_MODE=offline keeps the latter in the run directory. Settings that the active run has already stay as they are.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        library = _library("wandb", "wandb")
        self._own = library.run is None
        if self._own:
            self._run = _run_of_wandb(library, directory)
            self._run.config.update(dict(settings), allow_val_change=True)
        else:
            self._run = library.run
            self._run.config.setdefaults(dict(settings))
        self._defined: set[str] = set()

    def write(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Log numbers over a step of the stage's own, which W&B's steps of a whole run are not."""
        if stage not in self._defined:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._defined.add(stage)
        self._run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}})

    def close(self, ending: Ending) -> None:
        """Write what is left, and end a run of its own."""
        if self._own:
            self._run.finish(exit_code=0 if ending == "finished" else 1)


def _run_of_wandb(library: Any, directory: Path) -> Any:
    kept = directory / "wandb.json"
    known = json.loads(kept.read_text(encoding="utf-8"))["id"] if kept.is_file() else None
    run = library.init(
        project=os.environ.get("WANDB_PROJECT", "nasx"),
        name=directory.name,
        dir=str(directory),
        id=known,
        resume="allow",
    )
    if known is None:
        write_text(kept, json.dumps({"id": run.id}) + "\n")
    return run


class MLflow(Sink):
    """The active run of MLflow, which stays open, else one that is continued when the search is.

    Without MLFLOW_TRACKING_URI it lies in the run directory. MLflow's own state, such as its tracking URI, stays as it
    is.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        self._library = _library("mlflow", "mlflow")
        active = self._library.active_run()
        self._own = active is None
        uri = None if active or _has_server() else f"sqlite:///{(directory / 'mlflow.db').resolve()}"
        self._client = self._library.MlflowClient(tracking_uri=uri)
        self._id = _run_of_mlflow(self._client, directory) if active is None else active.info.run_id
        written = self._client.get_run(self._id).data.params  # which cannot be changed
        for section, fields in settings.items():
            values = fields if isinstance(fields, Mapping) else {"": fields}
            named = {f"{section}.{name}".rstrip("."): str(value)[:500] for name, value in values.items()}
            params = [self._library.entities.Param(name, v) for name, v in named.items() if name not in written]
            self._client.log_batch(self._id, params=params)

    def write(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        now, metric = int(time.time() * 1000), self._library.entities.Metric
        metrics = [metric(f"{stage}/{name}", value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, ending: Ending) -> None:
        """End a run of its own."""
        if self._own:
            status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[ending]
            self._client.set_terminated(self._id, status)


def _run_of_mlflow(client: Any, directory: Path) -> str:
    kept = directory / "mlflow.json"
    if kept.is_file():
        known: str = json.loads(kept.read_text(encoding="utf-8"))["id"]
        client.update_run(known, status="RUNNING")
        return known
    tags = _library("mlflow.tracking.context.registry", "mlflow").resolve_tags()  # who started what
    started = client.create_run(_experiment(client), run_name=directory.name, tags=tags)
    write_text(kept, json.dumps({"id": started.info.run_id}) + "\n")
    return str(started.info.run_id)


def _experiment(client: Any) -> str:
    """Return the id of the experiment that MLflow's environment variables name, by default `nasx`."""
    if _has_server() and "MLFLOW_EXPERIMENT_ID" in os.environ:
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "nasx")
    known = client.get_experiment_by_name(name)
    return str(known.experiment_id if known else client.create_experiment(name))


class EventLog:
    """Turns the events of a run into numbers for a sink; one that fails ends no run."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._steps: list[StepTaken] = []
        self._since = time.monotonic()
        self._failures = 0

    def __call__(self, event: Event) -> None:
        """Log an event, where the sink has not failed several times in a row."""
        if self._failures == _FAILURES:
            return
        try:
            self._log(event)
        except Exception as error:  # of whichever class a library has
            self._failures += 1
            ends = "; nothing more is logged" if self._failures == _FAILURES else ""
            logger.warning("%s could not be logged (%s)%s", type(event).__name__, _reason(error), ends)
        else:
            self._failures = 0

    def close(self, ending: Ending = "finished") -> None:
        """Have the sink write what is left."""
        try:
            self._sink.close(ending)
        except Exception as error:
            logger.warning("the end of the log could not be written (%s)", _reason(error))

    def _log(self, event: Event) -> None:
        match event:
            case StageStarted():
                self._since = time.monotonic()
            case StepTaken():
                self._steps.append(event)
                if len(self._steps) == _STEPS or event.step + 1 == event.total:
                    self._flush()
            case CandidateScored(stage=stage, number=number, score=score, best=best, macs=macs):
                values = {"score": score, "best_score": best, "macs": macs}
                self._sink.write(stage, {name: v for name, v in values.items() if math.isfinite(v)}, number)
            case NetworkTrained(stage=stage, number=number, result=result):
                for step, loss in result.get("losses", ()):
                    self._sink.write(f"{stage}/{number}", {"loss": loss}, int(step))
                if "val_score" in result:
                    self._sink.write(stage, {"val_score": result["val_score"]}, number)
            case NetworkTested(stage=stage, name=name, result=result):
                tested = {f"{name}/{key}": result[key] for key in ("test_score", "val_score", "params", "macs")}
                self._sink.write(stage, tested, 0)
            case StageFinished(stage=stage, seconds=seconds):
                self._flush()
                self._sink.write(stage, {"seconds": seconds}, 0)

    def _flush(self) -> None:
        if not self._steps:
            return
        now, last = time.monotonic(), self._steps[-1]
        losses = [step.loss for step in self._steps if math.isfinite(step.loss)]
        samples = sum(step.samples for step in self._steps)
        values = {"lr": last.lr, "samples_per_second": samples / max(now - self._since, 1e-9)}
        if losses:
            values["loss"] = sum(losses) / len(losses)
        self._steps.clear()
        self._since = now
        self._sink.write(last.stage, values, last.step)


@contextmanager
def logging_to(log: Log | None, directory: Path, settings: Mapping[str, Any]) -> Iterator[OnEvent | None]:
    """Give the hook that logs a run where `log` says, and close it at the end; None without a `log`.

    Raises ValueError for an unknown one, ImportError, with the extra to install, where its library is missing, and
    Refused where the library does not start, as without a login.
    """
    if log is None:
        yield None
        return
    with _starting(log):
        match log:
            case "tensorboard":
                sink: Sink = TensorBoard(directory)
            case "wandb":
                sink = WeightsAndBiases(directory, settings)
            case "mlflow":
                sink = MLflow(directory, settings)
    events = EventLog(sink)
    ending: Ending = "finished"
    try:
        yield events
    except (Interrupted, KeyboardInterrupt):
        ending = "stopped"
        raise
    except BaseException:
        ending = "failed"
        raise
    finally:
        events.close(ending)


def check_log(log: Log | None) -> None:
    """Refuse a `log` that cannot be written, before anything starts; raises what `logging_to` does."""
    if log is None:
        return
    with _starting(log):
        library = _library("torch.utils.tensorboard" if log == "tensorboard" else log, log)
        if log == "wandb":
            library.login(verify=False)  # refuses settings, and asks for a key where somebody can give one
        if log == "mlflow" and not _has_server():
            for module in ("sqlalchemy", "alembic"):  # which mlflow imports once it opens a database
                _library(module, log)


_MENDS: dict[Log, str] = {
    "tensorboard": "install it again: pip install 'nasx[tensorboard]'",
    "wandb": "log in with `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "correct MLFLOW_TRACKING_URI, or unset it to keep the log in the run directory",
}


@contextmanager
def _starting(log: Log) -> Iterator[None]:
    """Turn what a library raises when it starts into Refused; disks that fail are no fault of a library."""
    if log not in LOGS:
        raise ValueError(f"log must be one of {', '.join(LOGS)}, but got {log!r}")
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:  # of whichever class a library has
        raise Refused(f"--log {log} cannot start ({_reason(error)}); {_MENDS[log]}") from error


def _reason(error: Exception) -> str:
    reason = validation_message(error) if isinstance(error, ValidationError) else " ".join(str(error).split())
    return reason[:300].rstrip(".") or type(error).__name__


def _has_server() -> bool:
    """Return whether MLflow is to keep runs elsewhere than in the run directory."""
    return "MLFLOW_TRACKING_URI" in os.environ


def _library(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"--log {extra} needs its library: pip install 'nasx[{extra}]'") from error
