"""A moving average of a network's weights, often better than the weights themselves."""

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """The exponential moving average of a model's weights and buffers; `module` is the network that has it.

    The first update copies the model, each later one moves the average by `1 - decay` of the way to it. Whole numbers,
    such as BatchNorm's counts, are copied.
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"`0 < decay < 1` must hold, but got {decay}; 0.9999 suits trainings of 100,000 steps")
        self.module = copy.deepcopy(model)
        self.decay = decay
        some = next(chain(model.parameters(), model.buffers()))
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.long, device=some.device))

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return the outputs of the averaged network."""
        return self.module(*args, **kwargs)

    def update(self, model: nn.Module, broken: Tensor | bool = False) -> None:
        """Take a model's weights in; where `broken` is set, which may be a bool on the device, nothing changes."""
        self.move(self.pairs(model), broken)

    def pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Return each tensor of the average with the model's."""
        return list(zip(_tensors(self.module), _tensors(model), strict=True))

    @torch.no_grad()
    def move(self, pairs: Sequence[tuple[Tensor, Tensor]], broken: Tensor | bool = False) -> None:
        """Do what `update` does, given `pairs`: walking through the modules takes longer than the arithmetic."""
        if broken is True:
            return
        averages = [average for average, _ in pairs if average.is_floating_point()]
        values = [value for _, value in pairs if value.is_floating_point()]
        if isinstance(broken, Tensor):  # the share stays on the device, for reading it would wait for all before it
            good = broken.logical_not()
            share = torch.where(self.n_averaged == 0, 1.0, 1 - self.decay) * good
            torch._foreach_mul_(averages, 1 - share)
            torch._foreach_add_(averages, torch._foreach_mul(values, share))
            self.n_averaged += good
        else:
            torch._foreach_lerp_(averages, values, 1 - self.decay if self.n_averaged else 1.0)
            self.n_averaged += 1
        if counts := [pair for pair in pairs if not pair[0].is_floating_point()]:
            torch._foreach_copy_([average for average, _ in counts], [value for _, value in counts])


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def ema(model: nn.Module, decay: float) -> WeightAverage:
    """Return an exponential moving average of a model's weights, which `train(..., average=...)` updates.

    It moves by `1 - decay` of the way to them at each step.
    """
    return WeightAverage(model, decay)
