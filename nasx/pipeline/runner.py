"""Running a problem: its stages in a run directory, resumed where they were left, and what was found."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasx.arch import Arch
from nasx.data.seeding import generators_kept
from nasx.pipeline.changes import (
    changeable_fields,
    explain_changes,
    finished_stages,
    note_settings,
    recorded_run,
    set_aside_changed,
)
from nasx.pipeline.checks import check_run
from nasx.pipeline.context import Context
from nasx.pipeline.distributed_run import execute
from nasx.pipeline.errors import Diverged, OutOfMemory, Refused, SearchFailed
from nasx.pipeline.events import OnEvent, StageFinished, StageStarted, combined
from nasx.pipeline.fingerprint import fingerprint, up_to_rounding
from nasx.pipeline.finished_run import is_whole
from nasx.pipeline.loggers import Log, check_log, logging_to
from nasx.pipeline.machine import Machine, hardware
from nasx.pipeline.network_stages import EvaluationStage
from nasx.pipeline.outcome import outcome_of, versions, write_outcome
from nasx.pipeline.problem import Problem
from nasx.pipeline.progress import Progress, bars, silent
from nasx.pipeline.run_facts import write_facts
from nasx.pipeline.run_status import ProgressFile, write_stages
from nasx.pipeline.stages import RunStage
from nasx.pipeline.supernet_stages import first_supernets
from nasx.pipeline.task import FEW_VALIDATION
from nasx.pipeline.weight_files import load_weights, read_weights
from nasx.pipeline.workers import IMPORTED
from nasx.run import ConfigChanged, RunDirectory, RunLocked, Stage, StageContext
from nasx.run.files import Json
from nasx.train import Group, pick_device, process_group, use_deterministic_algorithms, use_precision
from nasx.train.jobs import prepare_workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrontNetwork:
    """A network of a Pareto front: no other that was trained has both a better score and lower costs."""

    arch: Arch
    costs: tuple[float, ...]
    """What the search traded the score for: the costs of the budgets in their order, or the MACs without budgets."""
    params: float
    macs: float
    val_score: float
    test_score: float
    weights: Path
    make: Callable[[Arch], nn.Module] = field(repr=False, compare=False)
    sha256: str = field(repr=False)

    def load(self) -> nn.Module:
        """Return the network with its trained weights, on the CPU, in evaluation mode; CorruptWeights if damaged."""
        return load_weights(self.make(self.arch).cpu(), read_weights(self.weights, self.sha256)).eval()


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a run found."""

    arch: Arch
    network: nn.Module
    """The network with its trained weights, on the CPU, in evaluation mode."""
    summary: Mapping[str, Any]
    """What `summary.json` holds."""
    front: tuple[FrontNetwork, ...]
    """The trade-off of score and cost that a Pareto search found, the cheapest first; else the one network."""
    directory: Path
    tests: Mapping[str, Mapping[str, Any]]
    """By evaluation stage, the networks that it scored, by name."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run's stages came to: results and seconds by name, and whether all of it was there before."""

    results: Mapping[str, Any]
    seconds: Mapping[str, float]
    already: bool


@generators_kept()
def run(
    problem: Problem[Any],
    directory: str | Path,
    *,
    machine: Machine | None = None,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
    log: Log | None = None,
    recorded: Mapping[str, Json] | None = None,
    command: str = "",
) -> SearchResult:
    """Search, or continue the search in a directory, and return what was found.

    The same call continues after any interruption with the same bits on a CPU; a finished run is only read. `machine`
    is that of the environment (NASX_DEVICE and so on) by default, `progress` shows bars on standard error, and
    `recorded` is kept beside the settings. Under torchrun all ranks call it alike.

    `on_event` is called with what happens as it happens (`nasx.pipeline.events`); `log` writes the same for
    "tensorboard", "wandb" or "mlflow", whose library the extra of that name installs. Neither changes a result. The
    global generators of Python, numpy and torch are afterwards as they were.
    `command` is what the report calls the way to start the run again.

    Raises Refused (a ValueError) where a run cannot start; ConfigChanged, also a ValueError, where the directory is
    another problem's; RunLocked where another process works there; Interrupted when a signal asked to stop, after which
    the same call continues; Diverged where a training's loss stays infinite; SearchFailed where no candidate has a
    finite score; OutOfMemory where the device's does not suffice; CorruptWeights for damaged files; BrokenImageError
    and WorkerDied of the data; NotEnoughSpace, and OSError where the disk is full or fails.
    """
    directory = Path(directory)
    with _plain_torch(), joined_group(machine) as (group, at):
        finished = run_stages(
            problem,
            directory,
            machine=at,
            group=group,
            progress=progress,
            on_event=on_event,
            log=log,
            recorded=recorded,
            command=command,
        )
        if not any(isinstance(stage, EvaluationStage) for stage in problem.stages()):
            raise Refused("the stages of a run end in an EvaluationStage; run_stages runs others")
        found: tuple[Any, ...] = ()
        if group.first:
            outcome = outcome_of(problem, finished.results, finished.seconds)
            if not finished.already or not is_whole(directory, outcome.winner["sha256"]):
                write_outcome(directory, problem, outcome)
            found = outcome.summary, outcome.winner, outcome.front, outcome.tests
        summary, winner, front, tests = group.from_first(found)
    arch = problem.space.canonical(winner["arch"])
    weights = read_weights(directory / winner["weights"], winner["sha256"])
    network = load_weights(problem.make(arch).cpu(), weights).eval()
    networks = tuple(
        FrontNetwork(
            arch=problem.space.canonical(row["arch"]),
            costs=tuple(row["costs"]),
            weights=directory / row["weights"],
            make=problem.make,
            sha256=row["sha256"],
            **{key: row[key] for key in ("params", "macs", "val_score", "test_score")},
        )
        for row in front
    )
    return SearchResult(arch, network, summary, networks, directory, tests)


@contextlib.contextmanager
def _plain_torch() -> Iterator[None]:
    """Lift the caller's modes, in which networks would not learn, or in another precision than the settings say."""
    on_cuda = torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), on_cuda:
        yield


@contextlib.contextmanager
def joined_group(machine: Machine | None = None) -> Iterator[tuple[Group, Machine]]:
    """Join the processes of torchrun, if any; Refused says that there is no such device."""
    try:
        at = machine or Machine.from_environment()
        device = pick_device(at.device)
    except ValueError as error:
        raise Refused(message_of(error)) from error
    if at.deterministic:
        use_deterministic_algorithms()
    with process_group(device) as group:
        yield group, at


def run_stages(
    problem: Problem[Any],
    directory: Path,
    *,
    machine: Machine,
    group: Group,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
    log: Log | None = None,
    recorded: Mapping[str, Json] | None = None,
    command: str = "",
) -> Finished:
    """Run a problem's stages, or what is missing of them; raises what `run` does."""
    try:
        problem.check()  # before the stages, whose networks are counted on the samples
        stages = problem.stages()
        check_run(problem, machine, group.size, finished=finished_stages(directory))
        check_log(log if group.first else None)
        opened = _opened(problem, directory, stages, group, recorded or {})
    except (ConfigChanged, RunLocked):
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise Refused(message_of(error)) from error
    if group.first:
        for note in notes(problem):
            logger.warning(note)
    shown = nullcontext(progress or silent) if progress or not group.first else bars()
    settings = problem.config.model_dump(mode="json")
    with opened as run_directory, shown as show:
        already = run_directory is not None and is_finished(problem, directory)
        if run_directory is not None:
            set_aside_changed(directory, stages, problem.config)
            write_stages(directory, stages)
            if not already:
                write_facts(directory, problem)
                device = pick_device(machine.device)
                if machine.processes_for(device) > 1:
                    prepare_workers(*IMPORTED)
                at = hardware(device, group.size)
                run_directory.note("started", {"command": command, "hardware": at, "versions": versions()})
        with logging_to(log if group.first and not already else None, directory, settings) as logged:
            hook = combined(on_event, logged) if group.first else None
            context = _Work(problem, machine, group, show, hook)
            own = [Stage(stage.name, context.of(stage), stage.inputs) for stage in stages]
            kinds = {stage.name: stage.kind for stage in stages}
            results = execute(run_directory, directory, own, group, *_stage_hooks(hook, kinds))
        seconds = run_directory.seconds if run_directory else {}
        return Finished(results, {name: seconds[name] for name in results if name in seconds}, already)


def is_finished(problem: Problem[Any], directory: Path) -> bool:
    """Return whether a directory holds the results of all of a problem's stages."""
    return {stage.name for stage in problem.stages()} <= set(finished_stages(directory))


def notes(problem: Problem[Any]) -> Iterator[str]:
    """Yield what a user should know before a run, though nothing forbids it."""
    val = problem.task.counts["val"]
    if val < FEW_VALIDATION and isinstance(problem.task.metric, str):
        yield (
            f"{val} validation samples tell accuracies apart by {100 / val:.1f} points at best; what is chosen on them "
            "is chosen by chance"
        )


def message_of(error: BaseException) -> str:
    """Return an error's message with its notes, in one line; a setting that pydantic refuses by its name."""
    from pydantic import ValidationError

    from nasx.cli import validation_message

    if isinstance(error, ValidationError):
        return validation_message(error)
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def _stage_hooks(
    hook: OnEvent | None, kinds: Mapping[str, str]
) -> "tuple[Callable[[Stage], None] | None, Callable[[Stage, float, bool], None] | None]":
    if hook is None:
        return None, None

    def on_start(stage: Stage) -> None:
        hook(StageStarted(stage.name, kinds[stage.name]))

    def on_done(stage: Stage, seconds: float, skipped: bool) -> None:
        if not skipped:
            hook(StageFinished(stage.name, kinds[stage.name], seconds))

    return on_start, on_done


@dataclass(frozen=True, slots=True)
class _Work:
    """Hands each stage its context, and keeps what it ran with and how it failed."""

    problem: Problem[Any]
    machine: Machine
    group: Group
    progress: Progress
    on_event: OnEvent | None

    def of(self, stage: RunStage) -> Any:
        """Return the work of a stage as `nasx.run` calls it."""

        def work(place: StageContext) -> Json:
            if self.group.first:
                note_settings(place.directory, stage, self.problem.config)
            progress = ProgressFile(place.run_directory, stage.name, self.progress) if self.group.first else silent
            try:
                with use_precision(self.problem.config.precision):
                    context = Context(self.problem, self.machine, self.group, progress, place, self.on_event)
                    return stage.work(context)
            except (Diverged, SearchFailed, torch.OutOfMemoryError) as error:
                failed = _out_of_memory(stage, error) if isinstance(error, torch.OutOfMemoryError) else error
                if self.group.first:
                    note_settings(place.directory, stage, self.problem.config, failure=str(failed))
                if failed is error:
                    raise
                raise failed from error

        return work


_SIZES = {
    "supernet": "supernet.batch_size",
    "search": "search.recalibration_batch_size",
    "retrain": "retrain.batch_size",
}


def _out_of_memory(stage: RunStage, error: torch.OutOfMemoryError) -> OutOfMemory:
    sizes = [size for section, size in _SIZES.items() if section in stage.sections]
    lower = " or ".join(sizes) or "the batch size"
    return OutOfMemory(f"{stage.name} ran out of memory; lower {lower} ({str(error).splitlines()[0]})")


def _opened(
    problem: Problem[Any], directory: Path, stages: Sequence[RunStage], group: Group, recorded: Mapping[str, Json]
) -> "contextlib.AbstractContextManager[RunDirectory | None]":
    if not group.first:
        return nullcontext()
    before, written_by = recorded_run(directory)
    one_torch = written_by.get("torch") == versions()["torch"]
    spaces = [stage.level.archs({}).space for stage in first_supernets(stages)]
    asked: dict[str, Any] = {
        "recipe": problem.name,
        **recorded,
        "config": json.loads(problem.config.model_dump_json()),
        "problem": up_to_rounding(fingerprint(problem, spaces), before.get("problem"), one_torch=one_torch),
        "split": problem.task.record(),
    }
    finished = {stage.name for stage in stages} <= set(finished_stages(directory))
    if finished and (run := RunDirectory.read(directory, config=asked)) is not None:
        return run
    changeable = changeable_fields(directory, stages, problem.config)
    try:
        return RunDirectory.open(directory, config=asked, versions=versions(), changeable=changeable)
    except ConfigChanged as error:
        raise ConfigChanged(explain_changes(directory, error.fields, before, asked), error.fields) from error
