"""Optimizers and schedules, all torch's own, with the settings of the field."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def nesterov_sgd(model: nn.Module, *, lr: float, weight_decay: float, momentum: float = 0.9) -> torch.optim.SGD:
    """Return SPOS's and GLiT's optimizer for supernets; decay applies to every parameter.

    Parameters without a gradient are left alone, momentum and decay included, so a candidate that a step did not
    sample keeps its weights to the bit.
    """
    parameters = list(model.parameters())
    # fused: small networks spend their step in the optimizer otherwise
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True, fused=True
    )
    for parameter in parameters:
        # starting from zero is what torch's first step does; the fused kernel cannot take some with and some without
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adamw(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return DeiT's optimizer: no decay for vectors (norms, biases), the class token and position embeddings.

    A model that has timm's method `no_weight_decay()` names further parameters that are spared.
    """
    spared = {"cls_token", "pos_embed", *getattr(model, "no_weight_decay", set)()}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        free_of_decay = parameter.ndim <= 1 or name in spared or name.rpartition(".")[2] in spared
        (free if free_of_decay else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def cosine_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    final_lr: float = 0.0,
) -> LambdaLR:
    """Return a schedule over steps: linear from `warmup_lr` to the optimizer's lr, then cosine to `final_lr`.

    Both bounds are those of the first parameter group; others keep their ratio to it.
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"`0 <= warmup_steps < steps` must hold, but got (warmup_steps={warmup_steps}, steps={steps})")
    lr = optimizer.param_groups[0]["lr"]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return float(warmup_lr + (lr - warmup_lr) * step / warmup_steps) / lr
        done = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
        return float(final_lr + (lr - final_lr) * (1 + math.cos(math.pi * done)) / 2) / lr

    return LambdaLR(optimizer, factor)
