"""A moving average of a network's weights, often better than the weights themselves."""

from itertools import chain

import torch
from torch import Tensor, nn

from nasx._modules import copied


class Tensors:
    """The parameters and buffers of a model, found once: walking through modules takes longer than using them.

    Parameters stay the same objects as long as it is used; a module may replace its buffers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self._holders = [module._buffers for module in model.modules()]

    def places(self) -> list[tuple[dict[str, Tensor | None], str]]:
        """Return where the buffers are, each once: the dictionary of a module, and the name."""
        found = {id(b): (holder, name) for holder in self._holders for name, b in holder.items() if b is not None}
        return list(found.values())

    def buffers(self) -> list[Tensor]:
        """Return the buffers that the modules have now, each once."""
        return [b for holder, name in self.places() if (b := holder[name]) is not None]

    def all(self) -> list[Tensor]:
        """Return parameters, then buffers."""
        return [*self.parameters, *self.buffers()]


class WeightAverage(nn.Module):
    """The exponential moving average of a model's weights and buffers; `module` is the network that has it.

    The first update copies the model, each later one moves the average by `1 - decay` of the way to it. Whole numbers,
    such as BatchNorm's counts, are copied, and so is a tensor that is not finite at the first update, such as a mask of
    infinities.
    """

    n_averaged: Tensor
    is_copied: Tensor
    """Which parameters and buffers are copied, as the first update finds."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"`0 < decay < 1` must hold, but got {decay}; 0.9999 suits trainings of 100,000 steps")
        self.module = copied(model)
        self.decay = decay
        some = next(chain(model.parameters(), model.buffers()), None)
        if some is None:
            raise ValueError(
                f"an average needs a model with weights or buffers, but {type(model).__name__} has none; leave it out"
            )
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.long, device=some.device))
        count = len(Tensors(model).all())
        self.register_buffer("is_copied", torch.zeros(count, dtype=torch.bool, device=some.device))
        self._is_copied: list[bool] | None = None  # the same, for reading it at each step would wait for the device
        self.register_load_state_dict_post_hook(_forget_what_is_copied)  # type: ignore[no-untyped-call]

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return the outputs of the averaged network."""
        return self.module(*args, **kwargs)

    def update(self, model: nn.Module, broken: Tensor | bool = False) -> None:
        """Take a model's weights in; where `broken` is set, which may be a bool on the device, nothing changes."""
        self.move(Tensors(self.module), Tensors(model), broken)

    @torch.no_grad()
    def move(self, average: Tensors, model: Tensors, broken: Tensor | bool = False) -> None:
        """Do what `update` does with tensors that were found before: those of `module`, and of the model."""
        if broken is True:
            return
        values = model.all()
        if self._is_copied is None:
            if not self.n_averaged:
                self.is_copied.copy_(torch.tensor([not _can_be_averaged(value) for value in values]))
            self._is_copied = self.is_copied.tolist()
        pairs = list(zip(average.all(), values, strict=True))
        moved = [pair for pair, is_copied in zip(pairs, self._is_copied, strict=True) if not is_copied]
        averages, values = [average for average, _ in moved], [value for _, value in moved]
        if isinstance(broken, Tensor):  # the share stays on the device, for reading it would wait for all before it
            good = broken.logical_not()
            share = torch.where(self.n_averaged == 0, 1.0, 1 - self.decay) * good
            torch._foreach_mul_(averages, 1 - share)
            torch._foreach_add_(averages, torch._foreach_mul(values, share))
            self.n_averaged += good
        else:
            torch._foreach_lerp_(averages, values, 1 - self.decay if self.n_averaged else 1.0)
            self.n_averaged += 1
        if others := [pair for pair, is_copied in zip(pairs, self._is_copied, strict=True) if is_copied]:
            torch._foreach_copy_([average for average, _ in others], [value for _, value in others])


def _can_be_averaged(tensor: Tensor) -> bool:
    # the mean of two infinities of one sign would be computed as no number
    return (tensor.is_floating_point() or tensor.is_complex()) and bool(tensor.isfinite().all())


def _forget_what_is_copied(average: nn.Module, _: object) -> None:
    average._is_copied = None  # type: ignore[assignment]


def ema(model: nn.Module, decay: float) -> WeightAverage:
    """Return an exponential moving average of a model's weights, which `train(..., average=...)` updates.

    It moves by `1 - decay` of the way to them at each step.
    """
    return WeightAverage(model, decay)
