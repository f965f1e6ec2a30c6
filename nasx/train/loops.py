"""The training loops: iterators over steps, between which the caller logs, saves and stops."""

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from nasx._arguments import whole_number
from nasx.arch import Arch
from nasx.train.average import WeightAverage
from nasx.train.batch import Batches, Unpack, Unpacked, batch_size, move, unpack
from nasx.train.device import autocast, device_of, seed_generators
from nasx.train.distillation import Distillation
from nasx.train.distributed import ALONE, Group, average_over, check_same_start, data_parallel, rows_of, whole_batch
from nasx.train.losses import (
    Loss,
    check_depends,
    check_mean,
    check_scalar,
    check_targets,
    for_outputs,
    is_cross_entropy,
    label_weight,
    labelled,
    loss_of_labels,
    on_device,
    targets_like,
)
from nasx.train.paths import Paths
from nasx.train.recovery import NotFinite, Recovery
from nasx.train.update import Update
from nasx.train.whole_batch import Rows

Batch = TypeVar("Batch")

_LATE_ON_CUDA = 2  # enough for the device never to wait for the CPU, few enough to bound what is enqueued


@dataclass(frozen=True, slots=True)
class Step:
    """What one training step did."""

    step: int
    loss: float
    """Mean over the samples, and over the paths where there are several; NaN where the step was left out."""
    lr: float
    """The learning rate that it was taken with."""
    archs: tuple[Arch, ...] = ()
    """The paths of a supernet's step; none for a single network."""
    skipped: bool = False
    """Whether it changed nothing: its loss or gradient was not finite, or it was to be left out."""


class Training(Iterator[Step]):
    """A training under way: an iterator over its steps, or `run()` for all of them. `train` makes one.

    It returns the records of the steps `taken`, and raises NotFinite after more than `max_skipped` in a row that were
    not finite, which `recovery` counts. On CUDA the record of a step comes some steps late (`delay`), because reading a
    loss at once would make the device wait. `flush` gives the records still missing; after it, model, optimizer and
    schedule stand exactly after the last step recorded, which is when to save or to evaluate them.
    """

    def __init__(self, taken: "Iterator[_StepResult]", recovery: Recovery, *, max_skipped: int, delay: int) -> None:
        self._taken, self._recovery, self._max_skipped, self._delay = taken, recovery, max_skipped, delay
        self._unread: deque[_StepResult] = deque()
        self._begun = False

    def __next__(self) -> Step:
        self._begun = True
        while len(self._unread) <= self._delay and (taken := next(self._taken, None)) is not None:
            self._unread.append(taken)
        if not self._unread:
            raise StopIteration
        return self._read()

    def flush(self) -> list[Step]:
        """Return the records of all steps that were taken and not yet returned, and take no further one."""
        return [self._read() for _ in range(len(self._unread))]

    def run(self, on_step: Callable[[Step], object] | None = None) -> list[Step]:
        """Take all steps that are left and return their records; `on_step` is called with each of them."""
        self._begun = True
        steps = []
        for step in self:
            steps.append(step)
            if on_step is not None:
                on_step(step)
        return steps

    def __del__(self) -> None:
        if not getattr(self, "_begun", True):
            warnings.warn(
                "a training was made but no step of it was taken, so nothing was trained; "
                "iterate over it, or call .run()",
                RuntimeWarning,
                stacklevel=2,
            )

    def _read(self) -> Step:
        taken = self._unread.popleft()
        step = taken.record()
        broken = self._recovery.broken_in_a_row + 1 if taken.computed and step.skipped else 0
        self._recovery.broken_in_a_row = broken
        if broken > self._max_skipped:
            raise NotFinite(range(step.step + 1 - broken, step.step + 1))
        return step


def train(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    *,
    loss: Loss = F.cross_entropy,
    unpack: Unpack = unpack,
    distillation: Distillation | None = None,
    schedule: LRScheduler | None = None,
    clip_norm: float | None = None,
    average: WeightAverage | None = None,
    batch_norm_group: int | None = None,
    start_step: int = 0,
    max_skipped: int = 3,
    recovery: Recovery | None = None,
    delay: int | None = None,
    group: Group = ALONE,
) -> Training:
    """Train `model`, one step of `optimizer` per batch: iterate over the steps, or call `.run()` for all of them.

    - `batches` yields batches of any structure, the first for `start_step`; `unpack` takes one apart into what the
      network is called with and the targets (see `nasx.train.unpack`).
    - `loss(outputs, targets)` is the mean over the samples; `functools.partial(F.cross_entropy, label_smoothing=0.1)`
      smooths labels. Torch's own losses get the `logits` of outputs that are not a tensor. Tensors of a loss, such as
      the weights of classes in a module or a partial function, are used on the model's device.
    - `distillation` adds a teacher, `schedule` steps after each batch, `clip_norm` bounds the gradient's norm, and
      `average` (`nasx.train.ema`) follows the weights.
    - `batch_norm_group` is the number of samples whose BatchNorm statistics are computed together, the whole batch by
      default (`nasx.train.BatchNormGroups`).
    - A step whose loss or gradient is not finite changes neither weights, optimizer, buffers nor average, and its
      record says so; more than `max_skipped` in a row raise NotFinite. `recovery` leaves batches out, for a training
      that goes back to a checkpoint then. The schedule counts all steps: the learning rate depends on the step alone.
    - On CUDA records come `delay` steps late, 2 by default, so that no step waits for a number to be read; elsewhere 0.

    The ranks of a `group` train one network, and each step must use all of its parameters: `batches` yields each rank's
    rows of the batches (`TrainBatches(part=group.part)`), and gradients (by DistributedDataParallel), BatchNorm
    statistics, dropout and stochastic depth are those of the whole batch. Give all ranks the same weights and
    generator states (`seeded`): they stay the same.

    A loss of torch's that is a sum is a ValueError, a schedule that steps on a loss (ReduceLROnPlateau) a TypeError.
    Targets that do not fit torch's own losses are a ValueError at the first batch (`nasx.train.check_targets`).
    """

    recovery = recovery or Recovery()
    device = _prepared(model, distillation, loss)
    loss = on_device(loss, device)
    update = Update(model, optimizer, schedule, clip_norm, average)
    objective = _Objective(loss, distillation)

    def passes(network: nn.Module, step: int, batch: Unpacked, shares: _LabelShares) -> Iterator[_ForwardPass]:
        with autocast(device):
            taught = objective.taught(batch)
            outputs = network(*batch.args, **batch.kwargs)
            value = objective.loss_of(outputs, batch.targets, taught, shares)
        yield _ForwardPass(value)

    loop = _Loop(model, update, loss, unpack, batch_norm_group, start_step, recovery, group)
    taken = loop.steps(batches, passes, reduced=True)
    return Training(taken, recovery, max_skipped=max_skipped, delay=_delay_on(device) if delay is None else delay)


def train_supernet(
    supernet: nn.Module,
    batches: Batches,
    paths: Paths,
    optimizer: torch.optim.Optimizer,
    *,
    loss: Loss = F.cross_entropy,
    unpack: Unpack = unpack,
    reduction: Literal["mean", "sum"] = "mean",
    distillation: Distillation | None = None,
    distill: bool = False,
    schedule: LRScheduler | None = None,
    clip_norm: float | None = None,
    average: WeightAverage | None = None,
    batch_norm_group: int | None = None,
    start_step: int = 0,
    max_skipped: int = 3,
    recovery: Recovery | None = None,
    delay: int | None = None,
    group: Group = ALONE,
) -> Training:
    """Train a supernet on the paths of each step, one optimizer step per batch (SPOS).

    `batches`, `loss`, `unpack`, `schedule`, `clip_norm`, `average`, `batch_norm_group`, `start_step`, `max_skipped`,
    `recovery`, `delay` and `group` are as in `train`. The supernet is called as `supernet(*args, arch=arch, **kwargs)`
    for each architecture of `paths(step)`. Where a step has several paths, `reduction` says whether the gradient is
    the mean of theirs or their sum, as in FairNAS and BigNAS; the loss reported is the mean either way.

    With `distill` the first path of a step learns from the targets and the others from its outputs: of a cross-entropy
    its softmax outputs, unsmoothed and where there is a label (in-place distillation; US-Nets, section 3.4).
    `distillation` brings a teacher from outside for every path instead. Ranks need the same paths too.
    """
    if not callable(paths):
        raise TypeError(
            f"`paths` must be a function of the step that returns architectures, but got {paths!r}; write "
            "UniformPaths(space, seed=0), or `lambda step: [arch]`"
        )
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be 'mean' or 'sum', but got {reduction!r}")
    if distill and distillation is not None:
        raise ValueError("`distill` and `distillation` are two teachers; pass one of them")
    if distill:
        targets_like(loss, torch.zeros(1, 2))  # refuses a loss that outputs cannot be targets of
    recovery = recovery or Recovery()
    device = _prepared(supernet, distillation, loss)
    loss = on_device(loss, device)
    update = Update(supernet, optimizer, schedule, clip_norm, average)
    of_targets = _Objective(loss, distillation)

    def passes(network: nn.Module, step: int, batch: Unpacked, shares: _LabelShares) -> Iterator[_ForwardPass]:
        archs = _checked_archs(paths(step), step)
        weight = 1.0 if reduction == "sum" else 1 / len(archs)
        objective, targets = of_targets, batch.targets
        with autocast(device):
            taught = objective.taught(batch)
        for number, arch in enumerate(archs):
            with autocast(device):
                try:
                    outputs = network(*batch.args, arch=arch, **batch.kwargs)
                    value = objective.loss_of(outputs, targets, taught, shares)
                except Exception as error:
                    error.add_note(f"with the architecture {dict(arch)}")
                    raise
            yield _ForwardPass(value, weight, 1 / len(archs), arch)
            if distill and number == 0:
                objective, targets = of_targets.for_outputs(), targets_like(loss, outputs, targets)
                shares = _LabelShares(shares.count, shares.count)

    loop = _Loop(supernet, update, loss, unpack, batch_norm_group, start_step, recovery, group)
    taken = loop.steps(batches, passes, reduced=False)
    return Training(taken, recovery, max_skipped=max_skipped, delay=_delay_on(device) if delay is None else delay)


def seeded(batches: Iterable[Batch], seed: int, start_step: int = 0) -> Iterator[Batch]:
    """Yield batches, seeding torch's generators before each from (seed, step); the first is that of `start_step`.

    Dropout and stochastic depth then depend on the step alone: a resumed run needs no generator state. The generators
    are not put back afterwards; `torch.random.fork_rng` around the training does so. The seed is any integer, else a
    ValueError.
    """
    return _seeded(batches, whole_number("seed", seed), whole_number("start_step", start_step))


def _seeded(batches: Iterable[Batch], seed: int, start_step: int) -> Iterator[Batch]:
    for step, batch in enumerate(batches, start_step):
        seed_generators(_mixed(seed, step))
        yield batch


def _mixed(seed: int, step: int) -> int:
    """Return one number for both that torch takes: of 64 bits, which a seed of 32 bits and a step fill."""
    plain = (seed << 32) + step
    if -(1 << 63) <= plain < 1 << 64:
        return plain
    return int(np.random.SeedSequence([abs(seed), int(seed < 0), step]).generate_state(1, np.uint64)[0])


def _checked_archs(archs: object, step: int) -> Sequence[Arch]:
    """Return what paths gave for a step; a TypeError says that these are no architectures in a row."""
    if not isinstance(archs, Sequence) or not archs or not all(isinstance(arch, Mapping) for arch in archs):
        raise TypeError(
            f"`paths` must return one architecture or more, as a tuple or a list of Arch, but gave {archs!r} at step "
            f"{step}; return (arch,) for one"
        )
    return archs


@dataclass(slots=True)
class _Objective:
    """What outputs are trained for: a loss, which is checked with the first of them, and perhaps a teacher."""

    loss: Loss
    distillation: Distillation | None = None
    checked: bool = False

    def taught(self, batch: Unpacked) -> Tensor | None:
        return self.distillation.outputs(batch) if self.distillation else None

    def loss_of(self, outputs: Any, targets: Any, taught: Tensor | None, shares: "_LabelShares") -> Tensor:
        if not self.checked:
            check_targets(outputs, targets.cpu() if isinstance(targets, Tensor) else targets, self.loss)
        value = loss_of_labels(self.loss, outputs, targets)
        if not self.checked:
            check_scalar(value)
        self.checked = True
        if self.distillation is None or taught is None:
            return _times(value, shares.weight)
        value = _times(value, shares.weight / shares.count if shares.count else 1.0)
        return _times(self.distillation.loss(value, outputs, taught, self.loss, targets), shares.count)

    def for_outputs(self) -> "_Objective":
        """Return the objective whose targets are made of a network's outputs."""
        return _Objective(for_outputs(self.loss), checked=True)


@dataclass(frozen=True, slots=True)
class _LabelShares:
    """A rank's share of the labels of a batch over its share of the rows; 1 where a loss counts rows.

    A cross-entropy is a mean over the labels that it does not ignore, by the weights of their classes, of which ranks
    with as many rows may have more or fewer.
    """

    weight: float = 1.0
    """Of the sum of the labels' weights."""
    count: float = 1.0
    """Of their number."""


def _label_amounts(loss: Loss, targets: Any) -> list[float]:
    """Return the sum of the labels' weights and their number; nothing for a loss that counts rows."""
    counted = labelled(loss, targets)
    return [] if counted is None else [float(label_weight(loss, targets, counted)), float(counted.sum())]


def _times(value: Tensor, factor: float) -> Tensor:
    return value if factor == 1 else value * factor


def _prepared(model: nn.Module, distillation: Distillation | None, loss: Loss) -> torch.device:
    check_mean(loss)
    device = device_of(model)
    if distillation is not None:
        distillation.prepare(device, loss)
    return device


def _delay_on(device: torch.device) -> int:
    return _LATE_ON_CUDA if device.type == "cuda" else 0


@dataclass(slots=True)
class _ForwardPass:
    """The loss of one path, its weight in the gradient, and its share of the loss reported."""

    loss: Tensor
    weight: float = 1.0
    share: float = 1.0
    arch: Arch | None = None


class _StepResult:
    """A step that was taken, or left out, and whose numbers may still be on the device."""

    def __init__(self, step: int, lr: float, archs: tuple[Arch, ...] = (), numbers: Tensor | None = None) -> None:
        self.step, self.lr, self.archs = step, lr, archs
        self.computed = numbers is not None
        self._numbers, self._copied = numbers, None
        if numbers is not None and numbers.is_cuda:
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(numbers.device))

    def record(self) -> Step:
        """Wait for the numbers of this step alone, and return its record."""
        if self._numbers is None:
            return Step(self.step, math.nan, self.lr, self.archs, skipped=True)
        if self._copied is not None:
            self._copied.synchronize()
        loss, broken = self._numbers.tolist()
        return Step(self.step, loss, self.lr, self.archs, skipped=bool(broken))


_Passes = Callable[[nn.Module, int, Unpacked, _LabelShares], Iterator[_ForwardPass]]
"""Yields the forward passes of a network in a step; each is differentiated before the next is computed."""


@dataclass(frozen=True, slots=True)
class _Loop:
    """What every step does, whatever forward passes it has."""

    model: nn.Module
    update: Update
    loss: Loss
    unpack: Unpack
    batch_norm_group: int | None
    start_step: int
    recovery: Recovery
    group: Group

    def steps(self, batches: Batches, passes: _Passes, *, reduced: bool) -> Iterator[_StepResult]:
        """Take a step for each batch; `reduced` lets DistributedDataParallel average gradients over the ranks."""
        network = data_parallel(self.group, self.model) if reduced else self.model
        device = device_of(self.model)
        counts_labels = self.group.size > 1 and is_cross_entropy(self.loss)
        # labels are mostly read on the CPU, where looking at them waits for no device
        loss_here = on_device(self.loss, torch.device("cpu")) if counts_labels else self.loss
        self.model.train()
        for step, batch in enumerate(batches, self.start_step):
            if step == self.start_step:  # now that every rank has read a batch, for which the first time takes longest
                check_same_start(self.group, self.model, step)
            lr = self.update.lr
            if step in self.recovery.skip_steps:
                self.update.advance()
                yield _StepResult(step, lr)
                continue
            unpacked = self.unpack(batch)
            amounts = _label_amounts(loss_here, unpacked.targets) if counts_labels else []
            rows, shares = rows_of(self.group, batch_size(unpacked.targets), amounts)
            moved = Unpacked(*move(tuple(unpacked), device))
            self.update.begin()
            loss, archs = self._differentiate(passes(network, step, moved, _LabelShares(*shares)), rows, device)
            if self.group.size > 1:
                own, others = self.update.gradients()
                average_over(self.group, [loss, *others] if reduced else [loss, *own, *others])
            broken = self.update.apply(loss)
            yield _StepResult(step, lr, archs, torch.stack([loss.float(), broken.float()]))

    def _differentiate(
        self, passes: Iterator[_ForwardPass], rows: Rows, device: torch.device
    ) -> tuple[Tensor, tuple[Arch, ...]]:
        """Compute the gradients of the rows of this rank, and return their part of the loss and the paths."""
        scale = rows.count * self.group.size / rows.whole if self.group.size > 1 else 1.0
        loss, archs = torch.zeros((), device=device), []
        with whole_batch(self.group, rows, self.batch_norm_group):
            for each in passes:
                check_depends(each.loss)
                (each.loss * (each.weight * scale)).backward()  # type: ignore[no-untyped-call]
                loss += each.loss.detach() * (each.share * scale)
                archs += [each.arch] if each.arch is not None else []
        return loss, tuple(archs)
