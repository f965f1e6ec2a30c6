"""Trainings that resume: supernets in this process, networks of their own side by side in several."""

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from nasx.arch import Arch
from nasx.recipe.config import Retraining, RunConfig
from nasx.recipe.machine import Machine
from nasx.recipe.problem import load_task
from nasx.recipe.progress import Progress
from nasx.run import Interrupted, StageContext
from nasx.run.checkpoints import Checkpoints, flatten_state, unflatten_state
from nasx.run.files import check_space, write_bytes
from nasx.train import (
    ALONE,
    Group,
    NotFinite,
    Step,
    Training,
    adamw,
    cosine_schedule,
    ema,
    evaluate,
    pick_device,
    run_jobs,
    seeded,
    train,
    use_deterministic_algorithms,
)

_CHECKPOINTS = 10  # of each training, beside the one that an interruption leaves
_SECONDS = 600.0  # between two checkpoints at most, for trainings of days
_ASKED = 20  # steps between two looks at the clock

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """A module, optimizer or schedule: anything that goes into a checkpoint and comes back."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take a state back."""


def resumable(
    checkpoints: Checkpoints,
    parts: Mapping[str, Stateful],
    steps_from: Callable[[int], Training],
    total: int,
    on_step: Callable[[Step], bool],
    group: Group = ALONE,
) -> list[float]:
    """Run a training from its last checkpoint to step `total`; return the loss of every step, old ones included.

    `steps_from(step)` continues the training of the parts at a step. `on_step` is told of each step and returns
    whether to stop: then the training is saved and Interrupted raised. It goes on with the same bits. Losses that
    are not finite several steps in a row send the training back to its last checkpoint once, and end it the second
    time (NotFinite). Of a group, the first rank saves; all read.
    """
    gone_back = False
    while True:
        losses, start = _restored(checkpoints, parts, group)
        try:
            return _run(checkpoints, parts, steps_from(start), total, on_step, losses, group)
        except NotFinite as error:
            if gone_back:
                error.add_note("also after going back to the last checkpoint; lower the learning rate")
                raise
            gone_back = True
            logger.warning("%s; going back to the last checkpoint, once", error)


def checkpoint_bytes(model: nn.Module) -> int:
    """Return about how much disk space a training's checkpoints take: two that are kept and one being written.

    Each holds the weights and, at most, two moments of every weight.
    """
    return 3 * 3 * sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _restored(checkpoints: Checkpoints, parts: Mapping[str, Stateful], group: Group) -> tuple[list[float], int]:
    if group.first and checkpoints.latest() is None:  # which sets damaged ones aside, before others read
        _save(checkpoints, parts, [], 0)  # to go back to
    group.wait()
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    state = unflatten_state(checkpoint.tensors, checkpoint.state)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["losses"], checkpoint.step


def _run(
    checkpoints: Checkpoints,
    parts: Mapping[str, Stateful],
    steps: Training,
    total: int,
    on_step: Callable[[Step], bool],
    losses: list[float],
    group: Group,
) -> list[float]:
    every, saved = -(-total // _CHECKPOINTS), time.monotonic()
    for step in steps:
        losses.append(step.loss)
        done = step.step + 1
        stop = on_step(step)
        # the first rank's clock decides for all, asked for now and then: a message costs time
        late = done % _ASKED == 0 and group.any(group.first and time.monotonic() - saved > _SECONDS)
        if done == total or stop or late or done % every == 0:
            losses += [last.loss for last in steps.flush()]  # the parts stand after these steps, on CUDA
            done = len(losses)
            if group.first:
                _save(checkpoints, parts, losses, done)
            saved = time.monotonic()
            group.wait()  # patiently, where the next step would not wait for a slow disk
        if stop and done < total:
            raise Interrupted(f"stopped after step {done} of {total}")
    return losses


def _save(checkpoints: Checkpoints, parts: Mapping[str, Stateful], losses: list[float], step: int) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    checkpoints.save(step, *flatten_state({**state, "losses": losses}))


class Damaged(ValueError):
    """A file that a finished stage left is not as it was written, so that the run cannot go on."""


@dataclass(frozen=True, slots=True)
class NetworkJob:
    """A network to train: how it is built, on what and how it is trained, and where its weights go.

    `build` is picklable. `start_from` is a file of weights to start from and its SHA-256, `training` replaces the
    configuration's own.
    """

    config: RunConfig
    data_path: Path | None
    arch: Arch
    build: Callable[[], nn.Module]
    seed: int
    weights: Path
    machine: Machine
    training: Retraining | None = None
    start_from: tuple[Path, str] | None = None

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return (self.training or self.config.retrain).batch_size


def train_network(job: NetworkJob, report: Callable[[int, int], bool], group: Group = ALONE) -> dict[str, Any]:
    """Train a network, all ranks of a group together, write its weights, and return its validation accuracy and losses.

    Checkpoints lie beside the weights, in the folder of their name, until `train_networks` removes them.
    """
    if job.machine.deterministic:  # this may be a process of its own
        use_deterministic_algorithms()
    task = load_task(job.config, job.data_path, job.machine)
    config = job.training or job.config.retrain
    torch.manual_seed(job.seed)
    model = job.build()
    if job.start_from:
        model.load_state_dict(read_weights(*job.start_from))
    model.to(pick_device(job.machine.device))
    if group.first:
        check_space(job.weights.parent, checkpoint_bytes(model))
    batches = task.retrain_batches(seed=job.seed, training=config, part=group.part)
    total = max(1, round(config.epochs * batches.steps_per_epoch))
    optimizer = adamw(model, lr=config.lr, weight_decay=config.weight_decay)
    schedule = cosine_schedule(
        optimizer,
        steps=total,
        warmup_steps=min(round(config.warmup_epochs * batches.steps_per_epoch), total - 1),
        warmup_lr=config.warmup_lr,
        final_lr=min(config.final_lr, config.lr),
    )
    average = ema(model, config.ema) if config.ema else None
    soft = bool(config.mixup or config.cutmix)  # then the targets carry the smoothing

    def steps_from(start: int) -> Training:
        return train(
            model,
            seeded(batches.steps(start, total), job.seed, start),
            optimizer,
            schedule=schedule,
            loss=partial(F.cross_entropy, label_smoothing=0.0 if soft else config.label_smoothing),
            clip_norm=config.clip_norm,
            average=average,
            start_step=start,
            group=group,
        )

    parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if average is not None:
        parts["average"] = average
    losses = resumable(
        Checkpoints(job.weights.with_suffix(""), identity=job.weights.stem),
        parts,
        steps_from,
        total,
        lambda step: group.any(report(step.step + 1, total)),
        group,
    )
    kept, scored = model, evaluate(model, task.eval_batches(task.dataset.val))
    if average is not None:
        averaged = evaluate(average.module, task.eval_batches(task.dataset.val))
        if averaged.score > scored.score:
            kept, scored = average.module, averaged
    return {
        "arch": dict(job.arch),
        "sha256": write_weights(job.weights, kept, group),
        "val_accuracy": scored.score,
        "val_loss": scored.loss if math.isfinite(scored.loss) else None,
        "losses": loss_curve(losses),
    }


def write_weights(path: Path, network: nn.Module, group: Group = ALONE) -> str:
    """Write a network's weights, the first rank of a group, and return the SHA-256 of the file."""
    content = save({name: tensor.cpu() for name, tensor in network.state_dict().items()})
    if group.first:
        write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Return the weights in a file of a run; Damaged where they are not those that were written."""
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Damaged(
            f"the weights in {path} are {'not those that were written' if content else 'missing'}; put the file back, "
            "or start again in a new run directory"
        )
    return load(content)


def train_networks(
    context: StageContext, jobs: Sequence[NetworkJob], machine: Machine, progress: Progress, group: Group = ALONE
) -> list[dict[str, Any]]:
    """Train networks side by side and return their results in order.

    Ranks of a group train a share each, which sends nothing; where there are more ranks than networks, all train one
    network after the other together, if the batch divides among them. An interruption leaves each network where it
    is; what had finished, or begun, is not done again.
    """
    finished = {record["number"]: record["network"] for record in context.journal if "number" in record}
    for number in finished:  # whose removal a kill may have cut short
        if group.first:
            shutil.rmtree(jobs[number].weights.with_suffix(""), ignore_errors=True)
    missing = [number for number in range(len(jobs)) if number not in finished]
    together = group.size > len(missing) > 0 and all(jobs[n].batch_size % group.size == 0 for n in missing)
    own = missing if together else group.shared_out(missing)
    share = 1 if together else group.size
    done = [0.0] * len(own)

    def on_progress(job: int, step: int, total: int) -> None:
        done[job] = step / total
        progress(context.name, len(jobs) - len(missing) + share * sum(done), len(jobs), f"{len(jobs)} networks")

    def on_result(job: int, network: dict[str, Any]) -> None:
        if share == 1:
            keep(own[job], network)

    def keep(number: int, network: dict[str, Any]) -> None:
        finished[number] = json.loads(json.dumps(network))
        context.journal.append({"number": number, "network": finished[number]})
        if group.first:
            shutil.rmtree(jobs[number].weights.with_suffix(""), ignore_errors=True)

    trained: list[dict[str, Any]] = []
    interrupted: Interrupted | None = None
    try:
        trained = run_jobs(
            partial(train_network, group=group) if together else train_network,
            [jobs[number] for number in own],
            processes=machine.processes_for(pick_device(machine.device)) if group.size == 1 else 1,
            on_progress=on_progress,
            on_result=on_result,
            stopping=lambda: context.stop.requested,
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
    progress(context.name, len(jobs), len(jobs), f"{len(jobs)} networks")
    return [finished[number] for number in range(len(jobs))]


def loss_curve(losses: Sequence[float], points: int = 100) -> list[tuple[int, float]]:
    """Return the mean loss of up to `points` equal spans of a training, each with the step that it ends at.

    Losses of skipped steps, which were not finite, do not count.
    """
    span = max(1, -(-len(losses) // points))
    curve = []
    for first in range(0, len(losses), span):
        finite = [loss for loss in losses[first : first + span] if math.isfinite(loss)]
        if finite:
            curve.append((min(first + span, len(losses)), sum(finite) / len(finite)))
    return curve
