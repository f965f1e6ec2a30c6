"""Recomputing BatchNorm statistics for one architecture (SPOS, section 3.4)."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasx.train.device import autocast, device_of
from nasx.train.loops import Batches


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Batches) -> int:
    """Replace the statistics of every BatchNorm that a pass reaches by averages over the batches; return their number.

    Every dimension is covered. Only the BatchNorm layers run in training mode (dropout and stochastic depth stay
    off), with cumulative averages, so batches of one size give the plain mean of their statistics. Layers that the
    pass does not reach, such as other candidates of a supernet, keep theirs; modes and momenta are restored.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    modes = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        for images, _ in batches:
            with autocast(device):
                model(images.to(device, non_blocking=True))
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        reached = [norm.num_batches_tracked is not None and int(norm.num_batches_tracked) > 0 for norm in norms]
        for norm, hit, buffers in zip(norms, reached, kept, strict=True):
            if not hit:
                norm.load_state_dict(buffers, strict=False)
    return sum(reached)
