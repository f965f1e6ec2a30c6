"""Trainings that resume: checkpoints, a table of losses, and one way back where losses are not finite."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from nasx.pipeline.config import SupernetTraining, TrainingSettings
from nasx.pipeline.errors import Diverged, NotEnoughSpace
from nasx.pipeline.metrics_file import MetricsFile
from nasx.run import Interrupted
from nasx.run.checkpoints import Checkpoints, flatten_state, unflatten_state
from nasx.run.files import check_space
from nasx.train import (
    ALONE,
    Distillation,
    Group,
    NotFinite,
    Recovery,
    Step,
    Training,
    WeightAverage,
    adamw,
    cosine_schedule,
    nesterov_sgd,
)
from nasx.train.batch import all_finite

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


@dataclass(slots=True)
class TrainingState:
    """All that a training changes, and that its checkpoints hold."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    average: WeightAverage | None = None
    recovery: Recovery = field(default_factory=Recovery)

    def parts(self) -> dict[str, Stateful]:
        """Return what goes into a checkpoint, by name."""
        found: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "recovery": self.recovery,
        }
        return found if self.average is None else {**found, "average": self.average}


def resumable(
    checkpoints: Checkpoints,
    state: TrainingState,
    steps_from: Callable[[int], Training],
    total: int,
    on_step: Callable[[Step], bool],
    group: Group = ALONE,
    *,
    batches_of: Callable[[int, int], Iterable[Any]],
    settings: str = "the learning rate",
    table: MetricsFile | None = None,
) -> list[float]:
    """Run a training from its last checkpoint to step `total`; return the loss of every step, old ones included.

    `steps_from(step)` continues the training at a step. `on_step` is called with each step and returns whether to
    stop: then the training is saved and Interrupted raised. It goes on with the same bits. Where losses are not finite
    several steps in a row, the training goes back to its last checkpoint once (`nasx.train.Recovery`). Where that does
    not help either it ends with Diverged, which names the data if the last batch, `batches_of(step, step + 1)`, has
    values that are not finite, else the `settings` to change. Of a group, the first rank saves, and writes what it does
    to `table` as it goes; all read.
    """
    losses, start = _restored(checkpoints, state, group)
    while True:
        written = table if table is not None and group.first else MetricsFile(None)
        written.start(start)
        try:
            return _run(checkpoints, state, steps_from(start), total, on_step, losses, group, written)
        except NotFinite as error:
            if state.recovery.gone_back:
                how = "also after going back to the last checkpoint, without these batches"
                last = error.steps[-1]
                if not all(map(all_finite, batches_of(last, last + 1))):
                    raise Diverged(
                        f"the training ended: {error}, {how}; inputs or targets of the last of these batches are not "
                        f"finite: correct such samples, or, where the loss masks them, lower {settings}"
                    ) from error
                raise Diverged(
                    f"the training diverged: {error}, {how} and with half the learning rate; lower {settings}"
                ) from error
            losses, start = _restored(checkpoints, state, group)
            logger.warning(state.recovery.go_back(error, state.optimizer, state.schedule))


def checkpoint_bytes(model: nn.Module) -> int:
    """Return about how much disk space a training's checkpoints take: two that are kept and one being written.

    Each holds the weights and, at most, two moments of every weight.
    """
    return 3 * 3 * sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def check_room(directory: Path, model: nn.Module) -> None:
    """Refuse a training whose checkpoints would not fit on the disk (NotEnoughSpace)."""
    try:
        check_space(directory, checkpoint_bytes(model))
    except ValueError as error:
        raise NotEnoughSpace(str(error)) from error


def supernet_optimizer(supernet: nn.Module, config: SupernetTraining) -> torch.optim.Optimizer:
    """Return the optimizer that a configuration asks for."""
    if config.optimizer == "adamw":
        return adamw(supernet, lr=config.lr, weight_decay=config.weight_decay)
    return nesterov_sgd(supernet, lr=config.lr, weight_decay=config.weight_decay, decay=config.decay)


def schedule_of(
    optimizer: torch.optim.Optimizer, config: TrainingSettings, steps: int, steps_per_epoch: int
) -> LRScheduler:
    """Return the schedule that a configuration asks for."""
    return cosine_schedule(
        optimizer,
        steps=steps,
        warmup_steps=min(round(config.warmup_epochs * steps_per_epoch), steps - 1),
        warmup_lr=min(config.warmup_lr, config.lr),
        final_lr=min(config.final_lr, config.lr),
        warmup="inside" if config.schedule == "epoch" else "before",
        steps_per_epoch=steps_per_epoch if config.schedule == "epoch" else None,
    )


def steps_of(config: TrainingSettings, steps_per_epoch: int, factor: float = 1.0) -> int:
    """Return how many steps a training takes, at least one."""
    return max(1, round(config.epochs * factor * steps_per_epoch))


def distillation_of(config: TrainingSettings, teacher: nn.Module | None, device: torch.device) -> Distillation | None:
    """Return how a training learns from a teacher, None without one."""
    if teacher is None:
        return None
    return Distillation(
        teacher.to(device).eval(),
        kind=config.distillation,
        weight=config.distillation_weight,
        temperature=config.distillation_temperature,
    )


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


def _restored(checkpoints: Checkpoints, state: TrainingState, group: Group) -> tuple[list[float], int]:
    if group.first and checkpoints.latest() is None:  # which sets damaged ones aside, before others read
        _save(checkpoints, state, [], 0)  # to go back to
    group.wait()
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    kept = unflatten_state(checkpoint.tensors, checkpoint.state)
    for name, part in state.parts().items():
        part.load_state_dict(kept[name])
    return kept["losses"], checkpoint.step


def _run(
    checkpoints: Checkpoints,
    state: TrainingState,
    steps: Training,
    total: int,
    on_step: Callable[[Step], bool],
    losses: list[float],
    group: Group,
    table: MetricsFile,
) -> list[float]:
    every, saved = -(-total // _CHECKPOINTS), time.monotonic()
    for step in steps:
        losses.append(step.loss)
        table.add(step)
        done = step.step + 1
        stop = on_step(step)
        # the first rank's clock decides for all, asked for now and then: a message costs time
        looked = done % _ASKED == 0
        late = looked and group.any(group.first and time.monotonic() - saved > _SECONDS)
        if done == total or stop or late or done % every == 0:
            for last in steps.flush():  # the parts stand after these steps, on CUDA
                losses.append(last.loss)
                table.add(last)
            done = len(losses)
            table.write()
            if group.first:
                _save(checkpoints, state, losses, done)
            saved = time.monotonic()
            group.wait()  # patiently, where the next step would not wait for a slow disk
        if stop and done < total:
            raise Interrupted(f"stopped after step {done} of {total}")
    return losses


def _save(checkpoints: Checkpoints, state: TrainingState, losses: list[float], step: int) -> None:
    kept = {name: part.state_dict() for name, part in state.parts().items()}
    checkpoints.save(step, *flatten_state({**kept, "losses": losses}))
