"""One optimizer step that takes place only where loss and gradients are finite, which the device decides itself.

Reading whether they are makes the CPU wait for all that the device still has to compute. So a flag stays on the
device: torch's fused optimizers take it (as from a gradient scaler) and then change neither weights nor state, and
what the forward pass did to buffers, such as BatchNorm's statistics, is undone where it is set.
"""

import inspect
import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from nasx.train.average import Tensors, WeightAverage
from nasx.train.stacked import StackedNetworks


class Update:
    """Applies gradients to a model, with all that goes with it: clipping, schedule, buffers, an average."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler | None,
        clip_norm: float | None,
        average: WeightAverage | None,
    ) -> None:
        _check_optimizer(optimizer, model)
        _check_schedule(schedule)
        self.optimizer, self.schedule = optimizer, schedule
        self.clip_norm, self.average = clip_norm, average
        self._tensors = Tensors(model)
        self._averages = None if average is None else Tensors(average.module)
        self._norm = model.norms if isinstance(model, StackedNetworks) else total_norm
        self._buffers = Buffers(model)
        self._scales = getattr(optimizer, "_step_supports_amp_scaling", False)
        self._takes_flag = _takes_flag(optimizer)
        self._stepped = False

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def begin(self) -> None:
        """Forget gradients and note buffers; call it before the forward pass."""
        # None, not zero: the optimizer then leaves what this step does not use alone
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in self._tensors.parameters:  # also of those that the optimizer does not have
            parameter.grad = None
        self._buffers.note()

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients that there are of what the optimizer has: the model's, and others, such as a loss's."""
        held = {id(p): p for group in self.optimizer.param_groups for p in group["params"]}
        own = [p.grad for p in self._tensors.parameters if held.pop(id(p), None) is not None and p.grad is not None]
        return own, [p.grad for p in held.values() if p.grad is not None]

    @torch.no_grad()
    def apply(self, loss: Tensor) -> Tensor:
        """Take the step, or nothing but the schedule's, and return whether it was not finite: a bool on the device."""
        own, others = self.gradients()
        gradients = own + others
        # one number tells whether loss and gradients are finite: both end in the norm
        norm = self._norm(gradients)
        broken = (norm + loss).isfinite().all().logical_not()
        undone = bool(broken) if broken.is_cpu else broken  # which costs nothing there
        if undone is not True:
            self._step(gradients, norm, None if undone is False else broken.float())
        self._buffers.undo(undone)
        if self.average is not None and self._averages is not None:
            self.average.move(self._averages, self._tensors, undone)
        self.advance()
        return broken

    def _step(self, gradients: list[Tensor], norm: Tensor, broken: Tensor | None) -> None:
        """Clip and step, unless the flag on the device says that nothing is to change."""
        optimizer: Any = self.optimizer
        if broken is not None and not self._takes_flag:
            if broken:
                return
            broken = None
        given = {} if broken is None else {"found_inf": broken}
        if self.clip_norm is not None:
            factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grads_with_norm_ has it
            if factor.ndim:  # one for each of several networks
                torch._foreach_mul_(gradients, [factor.view(-1, *(1,) * (g.ndim - 1)) for g in gradients])
            elif self._scales and factor.dtype == torch.float32:  # in the optimizer's own pass over the gradients
                given["grad_scale"] = factor.reciprocal()
            else:
                torch._foreach_mul_(gradients, factor)
        self._stepped = True
        vars(optimizer).update(given)
        try:
            optimizer.step()
        finally:
            for name in given:
                delattr(optimizer, name)

    def advance(self) -> None:
        """Move the schedule on; it counts every step, also one that was not finite or left out."""
        if self.schedule is None:
            return
        if self._stepped:
            self.schedule.step()
            return
        with warnings.catch_warnings():  # torch takes a step that was left out for a mistake in the order of calls
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)`", UserWarning)
            self.schedule.step()


def _check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    name, own = type(optimizer).__name__, set(model.parameters())
    if not any(parameter in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            f"`optimizer` must have parameters of the model that is trained, but {name} has none of them; make it of "
            "this model, after copying or converting it"
        )
    step = getattr(type(optimizer), "step", None)  # of the class, for a schedule wraps that of the object
    if step is None:  # a wrapper that passes on what it lacks
        return
    try:
        inspect.signature(step).bind(optimizer)
    except TypeError as error:
        raise TypeError(
            f"`optimizer` is stepped once for each batch, without a closure, but the step of {name} is {error}; use "
            "another, such as nasx.train.adamw"
        ) from error


def _check_schedule(schedule: LRScheduler | None) -> None:
    if schedule is None:
        return
    try:
        inspect.signature(schedule.step).bind()
    except TypeError as error:
        raise TypeError(
            f"`schedule` must depend on the step alone, because it is stepped without arguments after each batch, but "
            f"the step of {type(schedule).__name__} is {error}; write another, such as CosineAnnealingLR, or step this "
            "one yourself between the steps of the training"
        ) from error


def _takes_flag(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer's step heeds `found_inf`, as torch's gradient scaler asks it too."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    if isinstance(optimizer, torch.optim.SGD):  # whose first step would leave momentum that was never filled
        return all(
            not group["momentum"] or optimizer.state.get(p, {}).get("momentum_buffer") is not None
            for group in optimizer.param_groups
            for p in group["params"]
        )
    return True


class Buffers:
    """The buffers of a model that a forward pass changes or replaces, as they were before it."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = Tensors(model)
        # batch_norm writes its running statistics without the tensors' version counters knowing
        self._silent_dims = 2 if isinstance(model, StackedNetworks) else 1
        self._noted: list[Tensor] = []
        self._versions: list[int] = []
        self._before: list[Tensor] = []

    @torch.no_grad()
    def note(self) -> None:
        """Copy what may have changed since the last time."""
        now = self._tensors.buffers()
        at = self._changed(now)
        if len(now) != len(self._noted):
            at, self._before = list(range(len(now))), [torch.empty_like(b) for b in now]
        for i in at:
            if not _alike(now[i], self._before[i]):
                self._before[i] = torch.empty_like(now[i])
        if at:
            torch._foreach_copy_([self._before[i] for i in at], [now[i] for i in at])
        self._noted, self._versions = now, [b._version for b in now]

    @torch.no_grad()
    def undo(self, broken: Tensor | bool) -> None:
        """Bring back what has changed since it was noted, if the flag, which may be on the device, is set.

        A buffer that got another shape is brought back only where the flag is known.
        """
        if broken is False:
            return
        now = self._tensors.buffers()
        changed = self._changed(now)
        same = [i for i in changed if _alike(now[i], self._before[i])]
        if broken is True:
            places = self._tensors.places()
            for i in set(changed) - set(same):
                holder, name = places[i]
                holder[name] = self._before[i].clone()
            if same:
                torch._foreach_copy_([now[i] for i in same], [self._before[i] for i in same])
            return
        kinds = defaultdict(list)
        for i in same:
            kinds[now[i].device, now[i].dtype].append(i)
        for (device, _), numbers in kinds.items():
            current, before = ([buffers[i] for i in numbers] for buffers in (now, self._before))
            kept = torch.split(
                torch.where(broken.to(device), _flat(before), _flat(current)), [b.numel() for b in before]
            )
            torch._foreach_copy_(current, [part.view_as(b) for part, b in zip(kept, before, strict=True)])

    def _changed(self, now: list[Tensor]) -> list[int]:
        """Return which buffers may differ from what was noted; of other buffers than those, none is known to."""
        if len(now) != len(self._noted):
            return []
        return [
            i
            for i, (b, noted, version) in enumerate(zip(now, self._noted, self._versions, strict=True))
            if b is not noted or b._version != version or (b.is_floating_point() and b.ndim <= self._silent_dims)
        ]


def _alike(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and first.device == second.device


_FEW = 2**20  # elements, of which one copy costs less than a pass over each tensor


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, as a number on the first one's device; 0 where there are none."""
    if not gradients:
        return torch.tensor(0.0)
    device, dtype = gradients[0].device, gradients[0].dtype
    if any(g.device != device or g.dtype != dtype or g.is_sparse for g in gradients):
        return nn.utils.get_total_norm(gradients)
    if device.type == "cpu" and sum(g.numel() for g in gradients) <= _FEW:
        return torch.linalg.vector_norm(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
