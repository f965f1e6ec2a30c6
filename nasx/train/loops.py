"""The training loops, as generators: the caller logs, saves and stops between their steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from nasx.arch import Arch
from nasx.train.batchnorm import reset_broken_statistics
from nasx.train.device import autocast, device_of
from nasx.train.distributed import ALONE, Group, average_over, check_same_start, data_parallel, rows_of, whole_batch
from nasx.train.modes import Batches
from nasx.train.paths import Paths


class NotFinite(ArithmeticError):
    """Losses or gradients were not finite several steps in a row."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one training step did; `lr` is the learning rate that it was taken with."""

    step: int
    loss: float
    lr: float
    archs: tuple[Arch, ...] = ()
    skipped: bool = False


def train_supernet(
    supernet: nn.Module,
    batches: Batches,
    paths: Paths,
    optimizer: torch.optim.Optimizer,
    *,
    schedule: LRScheduler | None = None,
    label_smoothing: float = 0.0,
    distill: bool = False,
    clip_norm: float | None = None,
    start_step: int = 0,
    max_skipped: int = 3,
    group: Group = ALONE,
) -> Iterator[Step]:
    """Train a supernet on the paths of each step, one optimizer step per batch (SPOS).

    `batches` yields images (B, C, H, W) and labels (B,) or soft targets (B, classes), the first for `start_step`.
    Gradients are averaged where a step has several paths. With `distill` the first path of a step learns from the
    targets and the others from its softmax outputs, unsmoothed (in-place distillation; US-Nets, section 3.4). A step
    whose loss or gradient is not finite changes no weight and says so; more than `max_skipped` in a row raise
    NotFinite.

    The ranks of a `group` train one supernet: `batches` yields each rank's rows of the batches
    (`TrainBatches(part=group.part)`), and gradients, BatchNorm statistics, dropout and stochastic depth are those of
    the whole batch. Give all ranks the same weights, paths and generator states (`seeded`): they stay the same.
    """

    def losses(step: int, images: Tensor, targets: Tensor) -> Iterator[Tensor]:
        archs, smoothing = paths(step), label_smoothing
        for number, arch in enumerate(archs):
            with autocast(images.device):
                logits = supernet(images, arch)
                loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            yield loss / len(archs)
            if distill and number == 0:
                targets, smoothing = logits.detach().float().softmax(dim=1), 0.0

    for done in _train(
        supernet, batches, losses, optimizer, schedule, clip_norm, start_step, max_skipped, group, reduced=False
    ):
        yield replace(done, archs=paths(done.step))


def train(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    *,
    schedule: LRScheduler | None = None,
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
    average: AveragedModel | None = None,
    start_step: int = 0,
    max_skipped: int = 3,
    group: Group = ALONE,
) -> Iterator[Step]:
    """Train a network, one optimizer step per batch, updating an average of its weights after each.

    The ranks of a `group` train one network as `train_supernet` does, every parameter of which each step must use:
    gradients are averaged by DistributedDataParallel.
    """
    network = data_parallel(group, model)

    def losses(step: int, images: Tensor, targets: Tensor) -> Iterator[Tensor]:
        with autocast(images.device):
            loss = F.cross_entropy(network(images), targets, label_smoothing=label_smoothing)
        yield loss

    for done in _train(
        model, batches, losses, optimizer, schedule, clip_norm, start_step, max_skipped, group, reduced=group.size > 1
    ):
        if average is not None and not done.skipped:
            average.update_parameters(model)
        yield done


def seeded(batches: Batches, seed: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches, seeding torch's generators before each from (seed, step).

    Dropout and stochastic depth then depend on the step alone: a resumed run needs no generator state.
    """
    for step, batch in enumerate(batches, start_step):
        torch.manual_seed((seed << 32) + step)
        yield batch


def _train(
    model: nn.Module,
    batches: Batches,
    losses: Callable[[int, Tensor, Tensor], Iterator[Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler | None,
    clip_norm: float | None,
    start_step: int,
    max_skipped: int,
    group: Group,
    *,
    reduced: bool,
) -> Iterator[Step]:
    device, skipped = device_of(model), 0
    model.train()
    for step, (images, targets) in enumerate(batches, start_step):
        if step == start_step:  # now that every rank has read a batch, for which the first time takes longest
            check_same_start(group, model, start_step)
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        lr = optimizer.param_groups[0]["lr"]
        # None, not zero: the optimizer then leaves what this step does not use alone
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        rows = rows_of(group, len(images))
        with whole_batch(group, rows):
            for part in losses(step, images, targets):
                part = part * (rows.count * group.size / rows.whole) if group.size > 1 else part
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.detach()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        average_over(group, [loss] if reduced else [loss, *gradients])
        # one number tells whether loss and gradients are finite: both end in the norm
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm if clip_norm is not None else float("inf"))
        finite = bool(torch.isfinite(norm + loss))
        if finite:
            optimizer.step()
            if schedule is not None:
                schedule.step()
        else:
            reset_broken_statistics(model)
        skipped = 0 if finite else skipped + 1
        if skipped > max_skipped:
            raise NotFinite(f"loss or gradient was not finite in {skipped} steps in a row, the last of them {step}")
        yield Step(step, float(loss), lr, skipped=not finite)
