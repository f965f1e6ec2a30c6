"""Optimizers and schedules, all torch's own, with the settings of the field."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from nasx.train.stacked import StackedNetworks


def nesterov_sgd(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    decay: Literal["all", "matrices"] = "all",
) -> torch.optim.SGD:
    """Return the optimizer that SPOS and GLiT train supernets with: SGD with Nesterov's momentum.

    It has all parameters of `model`, the learning rate `lr` and the factor `weight_decay`. `decay` says which
    parameters weight decay applies to: `all`, or `matrices`, those of more than one dimension, as SPOS's code has it,
    which spares norms and biases (a class token and positions have more than one dimension).

    Parameters without a gradient are left alone, momentum and decay included, so a candidate that a step did not
    sample keeps its weights to the bit. In the torch of SPOS's and GLiT's code gradients were zero instead of absent:
    there momentum and decay went on moving candidates that were not sampled.
    """
    if decay not in ("all", "matrices"):
        raise ValueError(f"`decay` must be 'all' or 'matrices', but got {decay!r}")
    parameters = list(model.parameters())
    decayed = [p for p in parameters if decay == "all" or not _is_vector(model, p)]
    spared = [p for p in parameters if decay == "matrices" and _is_vector(model, p)]
    groups = [{"params": decayed, "weight_decay": weight_decay}]
    groups += [{"params": spared, "weight_decay": 0.0}] if spared else []
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True, fused=_can_be_fused(parameters))
    for parameter in parameters:
        # starting from zero is what torch's first step does; the fused kernel cannot take some with and some without
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adamw(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return DeiT's optimizer: no decay for vectors (norms, biases), the class token and position embeddings.

    `lr` is the learning rate, `weight_decay` the factor of all other parameters. Those that are spared are the
    parameters called `cls_token` and `pos_embed`, in whichever module. A model that has timm's method
    `no_weight_decay()` names further parameters that are spared, by their full names, as timm matches them: in
    AutoFormer's list `rel_pos_embed` is no full name, so its tables of relative positions are decayed. Tensors that a
    supernet keeps for each value of a choice have the name that the network gives them.
    """
    named = set(getattr(model, "no_weight_decay", set)())
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for stored, parameter in model.named_parameters():
        name = stored.partition("@")[0]
        last = name.rpartition(".")[2]
        spared = _is_vector(model, parameter) or last in ("cls_token", "pos_embed") or name in named or stored in named
        (free if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=_can_be_fused([*decayed, *free]))


def _can_be_fused(parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether torch's fused kernels take all parameters; small networks spend their step in others."""
    return all(p.is_floating_point() for p in parameters if p.requires_grad)


def _is_vector(model: nn.Module, parameter: nn.Parameter) -> bool:
    return parameter.ndim <= (2 if isinstance(model, StackedNetworks) else 1)  # the first dimension is the networks'


def cosine_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    final_lr: float = 0.0,
    warmup: Literal["before", "inside"] = "before",
    steps_per_epoch: int | None = None,
) -> LambdaLR:
    """Return a schedule over `steps`: linear from `warmup_lr` to the optimizer's lr, then cosine to `final_lr`.

    The warm-up takes `warmup_steps`. The cosine begins at the end of the warm-up, or, with `warmup="inside"`, with the
    first step: the warm-up then covers its beginning, as in timm and so in DeiT and AutoFormer. With `steps_per_epoch`
    the rate changes between epochs only, as theirs do. Bounds are those of the first parameter group whose lr is not 0;
    others keep their ratio to it. Where all are 0 they stay 0, and a bound above 0 that the schedule would have to
    reach is a ValueError.
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"`0 <= warmup_steps < steps` must hold, but got (warmup_steps={warmup_steps}, steps={steps})")
    if warmup not in ("before", "inside"):
        raise ValueError(f"`warmup` must be 'before' or 'inside' the cosine, but got {warmup!r}")
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise ValueError(f"`steps_per_epoch >= 1` must hold, but got {steps_per_epoch}")
    lr = next((group["lr"] for group in optimizer.param_groups if group["lr"] != 0), 0.0)
    if lr == 0 and (final_lr or (warmup_steps and warmup_lr)):
        raise ValueError(
            f"an lr of 0 stays 0, but got (warmup_lr={warmup_lr}, final_lr={final_lr}); set them to 0, or give the "
            "optimizer a positive lr"
        )
    first = warmup_steps if warmup == "before" else 0

    def factor(step: int) -> float:
        if lr == 0:
            return 1.0
        if steps_per_epoch is not None:
            step -= step % steps_per_epoch
        if step < warmup_steps:
            return float(warmup_lr + (lr - warmup_lr) * step / warmup_steps) / lr
        done = min(1.0, (step - first) / (steps - first))
        return float(final_lr + (lr - final_lr) * (1 + math.cos(math.pi * done)) / 2) / lr

    return LambdaLR(optimizer, factor)
