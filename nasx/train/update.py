"""One optimizer step that takes place only where loss and gradients are finite, which the device decides itself.

Reading whether they are makes the CPU wait for all that the device still has to compute. So a flag stays on the
device: torch's fused optimizers take it (as from a gradient scaler) and then change neither weights nor state, and
what the forward pass did to buffers, such as BatchNorm's statistics, is undone where it is set.
"""

import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from nasx.train.average import WeightAverage
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
        self.optimizer, self.schedule = optimizer, schedule
        self.clip_norm, self.average = clip_norm, average
        # noted once, for walking through the modules of a small network takes longer than what is done with them
        self._parameters = list(model.parameters())
        self._averaged = [] if average is None else average.pairs(model)
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
        self._buffers.note()

    def gradients(self) -> list[Tensor]:
        """Return the gradients that there are."""
        return [p.grad for p in self._parameters if p.grad is not None]

    @torch.no_grad()
    def apply(self, loss: Tensor) -> Tensor:
        """Take the step, or nothing but the schedule's, and return whether it was not finite: a bool on the device."""
        gradients = self.gradients()
        # one number tells whether loss and gradients are finite: both end in the norm
        norm = self._norm(gradients)
        broken = (norm + loss).isfinite().all().logical_not()
        undone = bool(broken) if broken.is_cpu else broken  # which costs nothing there
        if undone is not True:
            self._step(gradients, norm, None if undone is False else broken.float())
        self._buffers.undo(undone)
        if self.average is not None:
            self.average.move(self._averaged, undone)
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
    """The buffers of a model that a forward pass changes, as they were before it."""

    def __init__(self, model: nn.Module) -> None:
        self._all = list(model.buffers())
        # batch_norm writes its running statistics without the tensors' version counters knowing
        vectors = 2 if isinstance(model, StackedNetworks) else 1
        self._silent = [b.is_floating_point() and b.ndim <= vectors for b in self._all]
        self._before = [torch.empty_like(b) for b in self._all]
        self._versions = [-1] * len(self._all)

    @torch.no_grad()
    def note(self) -> None:
        """Copy what may have changed since the last time."""
        at = self._changed()
        if at:
            torch._foreach_copy_([self._before[i] for i in at], [self._all[i] for i in at])
        for i in at:
            self._versions[i] = self._all[i]._version

    @torch.no_grad()
    def undo(self, broken: Tensor | bool) -> None:
        """Bring back what has changed since it was noted, if the flag, which may be on the device, is set."""
        if broken is False:
            return
        at = self._changed()
        if broken is True:
            if at:
                torch._foreach_copy_([self._all[i] for i in at], [self._before[i] for i in at])
            return
        kinds = defaultdict(list)
        for i in at:
            kinds[self._all[i].device, self._all[i].dtype].append(i)
        for (device, _), places in kinds.items():
            now, before = ([buffers[i] for i in places] for buffers in (self._all, self._before))
            kept = torch.split(torch.where(broken.to(device), _flat(before), _flat(now)), [b.numel() for b in now])
            torch._foreach_copy_(now, [part.view_as(b) for part, b in zip(kept, now, strict=True)])

    def _changed(self) -> list[int]:
        return [i for i, b in enumerate(self._all) if self._silent[i] or b._version != self._versions[i]]


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
