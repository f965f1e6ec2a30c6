"""Networks trained one by one: side by side in several processes, or each by all ranks together."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from nasx._words import number_of
from nasx.arch import Arch
from nasx.pipeline.config import Retraining
from nasx.pipeline.context import Context
from nasx.pipeline.events import NetworkTrained
from nasx.pipeline.machine import Machine
from nasx.pipeline.metrics_file import METRICS, MetricsFile
from nasx.pipeline.problem import Make
from nasx.pipeline.task import BaseTask
from nasx.pipeline.training import (
    TrainingState,
    check_room,
    distillation_of,
    loss_curve,
    resumable,
    schedule_of,
    steps_of,
)
from nasx.pipeline.weight_files import load_weights, read_weights, write_validation, write_weights
from nasx.pipeline.workers import run_side_by_side
from nasx.run import Interrupted
from nasx.run.checkpoints import Checkpoints
from nasx.search import Halving
from nasx.train import (
    ALONE,
    Evaluation,
    Group,
    Precision,
    Training,
    adamw,
    compiled_blocks,
    ema,
    pick_device,
    seeded,
    train,
    use_deterministic_algorithms,
    use_precision,
)
from nasx.train.compiled import missing_for_compilation

Result = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NetworkTraining:
    """How some networks are trained: all that they have in common."""

    task: BaseTask
    make: Make
    training: Retraining
    eval_batch_size: int
    machine: Machine
    teacher: nn.Module | None = None
    precision: Precision = "auto"
    with_validation: bool = False
    """Whether they are trained on the validation samples too, and so not scored."""
    rate: str = "retrain.lr"
    """The setting of the learning rate, which a training that diverges names."""

    def evaluate(self, network: nn.Module) -> Evaluation:
        """Score a network on the validation samples."""
        batches = self.task.eval_batches("val", self.eval_batch_size, workers=self.machine.workers)
        return self.task.evaluate(network, batches)


@dataclass(frozen=True, slots=True)
class NetworkJob:
    """One network to train: its seed, where its weights go, and what it starts from (a file and its SHA-256).

    `share` of the training is done; what is left can be done later. `keep` decides between the weights and their
    average; by default the settings do.
    """

    arch: Arch
    seed: int
    weights: Path
    start_from: tuple[Path, str] | None = None
    share: float = 1.0
    keep: Literal["ema", "raw", "better"] | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.weights.with_suffix("")


def train_network(
    shared: NetworkTraining, job: NetworkJob, report: Callable[[int, int], bool], group: Group = ALONE
) -> Result:
    """Train a network, all ranks of a group together, write its weights, and return its validation score and losses.

    Checkpoints lie beside the weights, in the folder of their name.
    """
    machine, config, task = shared.machine, shared.training, shared.task
    if machine.deterministic:  # this may be a process of its own
        use_deterministic_algorithms()
    device = pick_device(machine.device)
    torch.manual_seed(job.seed)
    model = shared.make(job.arch)
    if job.start_from:
        load_weights(model, read_weights(*job.start_from))
    model.to(device)
    if group.first:
        check_room(job.weights.parent, model)
    batches = task.train_batches(
        config, seed=job.seed, part=group.part, workers=machine.workers, with_validation=shared.with_validation
    )
    total = steps_of(config, batches.steps_per_epoch)
    end = max(1, round(job.share * total))
    optimizer = adamw(model, lr=config.lr, weight_decay=config.weight_decay)
    schedule = schedule_of(optimizer, config, total, batches.steps_per_epoch)
    average = ema(model, config.ema) if config.ema else None
    state = TrainingState(model, optimizer, schedule, average)
    distillation = distillation_of(config, shared.teacher, device)

    def steps_from(start: int) -> Training:
        return train(
            model,
            seeded(batches.steps(start, end), job.seed, start),
            optimizer,
            loss=task.loss_of(config),
            unpack=task.unpack,
            distillation=distillation,
            schedule=schedule,
            clip_norm=config.clip_norm,
            average=average,
            batch_norm_group=config.batch_norm_group,
            start_step=start,
            recovery=state.recovery,
            group=group,
        )

    compiled = compiles(config, device, total, group, deterministic=machine.deterministic)
    running = compiled_blocks(model, fall_back=config.compile == "auto") if compiled else nullcontext()
    with use_precision(shared.precision), running:
        losses = resumable(
            Checkpoints(job.checkpoints, identity=job.weights.stem),
            state,
            steps_from,
            end,
            lambda step: group.any(report(step.step + 1, end)),
            group,
            batches_of=batches.steps,
            settings=shared.rate,
            table=MetricsFile(job.weights.with_suffix(f".{METRICS}"), config.batch_size, device),
        )
    result: Result = {"arch": dict(job.arch), "losses": loss_curve(losses), "steps": end}
    with use_precision(shared.precision):
        kept, network, scored = _kept(shared, job.keep or config.keep, model, average)
    if scored is not None:
        result |= write_validation(job.weights, scored, group)
    return {**result, "kept": kept, "sha256": write_weights(job.weights, network, group)}


_PAYS_AFTER = 12_000  # steps: GLiT-Tiny on an H100 repays a minute of compiling after 11,100 of 256 images


def compiles(
    config: Retraining, device: torch.device, steps: int, group: Group = ALONE, *, deterministic: bool = False
) -> bool:
    """Return whether a training of so many steps in all runs compiled blocks (`retrain.compile`).

    `auto` does on CUDA, where the training is long and need not give the same bits each time. Processes that share
    each batch never do: compiled code would not see that statistics and random masks are the whole batch's.
    """
    if group.size > 1:
        if config.compile is True and group.first:
            logger.warning("retrain.compile=true has no effect where processes share the batches of one network")
        return False
    if config.compile != "auto":
        return config.compile
    long = steps >= _PAYS_AFTER and not deterministic
    return device.type == "cuda" and long and missing_for_compilation(device) is None


def _kept(
    shared: NetworkTraining, keep: Literal["ema", "raw", "better"], model: nn.Module, average: Any
) -> tuple[str, nn.Module, Evaluation | None]:
    """Return which weights are kept, the network that has them, and its score where it is scored."""
    candidates: dict[str, nn.Module] = {"raw": model}
    if average is not None:
        candidates["ema"] = average.module
    if keep in candidates:  # else what is better, of those that there are
        candidates = {keep: candidates[keep]}
    if shared.with_validation:  # what is better was decided before
        name, network = next(iter(candidates.items()))
        return name, network, None
    scored: dict[str, Evaluation] = {}
    for name, network in candidates.items():
        try:
            scored[name] = shared.evaluate(network)
        except ValueError as error:  # of a metric that has no number for it
            if name == list(candidates)[-1] and not scored:
                raise
            logger.warning("the weights %r are left out: %s", name, error)
    best = max(scored, key=lambda name: scored[name].score)  # the weights themselves where both are as good
    return best, candidates[best], scored[best]


def train_networks(context: Context, shared: NetworkTraining, jobs: Mapping[int, NetworkJob]) -> dict[int, Result]:
    """Train networks side by side and return their results, each by the number of its job.

    Ranks of a group train a share each, which sends nothing; where there are more ranks than networks, all train one
    network after the other together, if the batch divides among them. An interruption leaves each network where it
    is; what had finished, or begun, is not done again. Checkpoints of trainings that came to their end are removed.
    """
    group, machine, journal = context.group, context.machine, context.stage.journal
    known = {(r["number"], r["share"]): r["network"] for r in journal if "number" in r}
    finished: dict[int, Result] = {n: known[n, job.share] for n, job in jobs.items() if (n, job.share) in known}
    for number in finished:
        _remove_checkpoints(jobs[number], group)  # which a kill may have cut short
    missing = [number for number in jobs if number not in finished]
    together = group.size > len(missing) > 0 and shared.training.batch_size % group.size == 0
    own = missing if together else group.shared_out(missing)
    share = 1 if together else group.size
    done = [0.0] * len(own)

    def on_progress(job: int, step: int, total: int) -> None:
        done[job] = step / total
        context.show(len(jobs) - len(missing) + share * sum(done), len(jobs), number_of(len(jobs), "network"))

    def on_result(job: int, network: Result) -> None:
        if share == 1:
            keep(own[job], network)

    def keep(number: int, network: Result) -> None:
        finished[number] = json.loads(json.dumps(network))
        journal.append({"number": number, "share": jobs[number].share, "network": finished[number]})
        _remove_checkpoints(jobs[number], group)
        if context.on_event:
            context.on_event(NetworkTrained(context.name, number, jobs[number].arch, finished[number]))

    trained: list[Result] = []
    interrupted: Interrupted | None = None
    try:
        trained = run_side_by_side(
            partial(train_network, group=group) if together else train_network,
            shared,
            [jobs[number] for number in own],
            processes=machine.processes_for(context.device) if group.size == 1 else 1,
            threads=1 if context.device.type == "cpu" else context.problem.config.threads,
            on_progress=on_progress,
            on_result=on_result,
            stopping=lambda: context.stage.stop.requested,
        )
    except Interrupted as error:
        interrupted = error
    # also where some were interrupted: all ranks leave together, and what others finished is kept
    of_ranks = group.gather({group.rank: (trained, interrupted is not None)})
    if share > 1:
        for rank, (networks, _) in of_ranks.items():
            for number, network in zip(missing[rank::share], networks, strict=False):
                keep(number, network)
    stopped = [rank for rank, (_, stop) in of_ranks.items() if stop]
    if stopped:
        raise interrupted or Interrupted(f"stopped because rank {stopped[0]} was")
    context.show(len(jobs), len(jobs), number_of(len(jobs), "network"))
    return {number: finished[number] for number in jobs}


def train_by_halving(
    context: Context, shared: NetworkTraining, jobs: Mapping[int, NetworkJob], finalists: int
) -> dict[int, Result]:
    """Train networks by successive halving (`nasx.search.Halving`) until `finalists` come to the end.

    Checkpoints go on, so nothing is trained twice. Returns the last result of every network, with the share of a whole
    training that it had.
    """
    plan = Halving(len(jobs), finalists)
    left, results = dict(jobs), dict[int, Result]()
    for number, rung in enumerate(plan.rungs):
        found = train_networks(context, shared, {n: replace(job, share=rung.share) for n, job in left.items()})
        results |= {n: {**network, "share": rung.share} for n, network in found.items()}
        if rung.share == 1:
            break
        going_on = plan.going_on(number, {n: network["val_score"] for n, network in found.items()})
        for n in left.keys() - set(going_on):
            _remove_checkpoints(replace(jobs[n], share=1), context.group)
        left = {n: jobs[n] for n in sorted(going_on)}
    return {number: results[number] for number in jobs}


def _remove_checkpoints(job: NetworkJob, group: Group) -> None:
    if group.first and job.share == 1:
        shutil.rmtree(job.checkpoints, ignore_errors=True)


def validation_key(network: Mapping[str, Any]) -> tuple[float, float]:
    """Return what decides between networks: the score, and between equal scores the loss."""
    loss = network["val_loss"]
    return network["val_score"], -math.inf if loss is None else -loss
