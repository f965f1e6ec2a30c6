"""Recomputing BatchNorm statistics for one architecture (SPOS, section 3.4)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasx.train.batch import Batches, Unpack, move, unpack
from nasx.train.device import autocast, device_of
from nasx.train.modes import evaluating


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Batches, *, unpack: Unpack = unpack) -> dict[str, Tensor]:
    """Replace the statistics of every BatchNorm that a pass reaches by averages over the batches; return copies.

    `unpack` takes a batch apart into what the network is called with and the targets, which are not used.
    `model.load_state_dict(returned, strict=False)` brings them back after another architecture's took their place.
    Every dimension is covered. Only the BatchNorm layers run in training mode (dropout and stochastic depth stay
    off), with cumulative averages, so batches of one size give the plain mean of their statistics. Layers that the
    pass does not reach, such as other candidates of a supernet, keep theirs; modes and momenta are restored. An error
    leaves all statistics as they were; no batches are a ValueError, and so is a `Supernet`, which has no layers of its
    own: its `Subnet` of an architecture has.
    """
    named = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats}
    if not named and hasattr(model, "extract") and any("running_mean" in name for name, _ in model.named_buffers()):
        raise ValueError(
            f"a {type(model).__name__} has BatchNorm statistics but no BatchNorm layers, which the network of an "
            "architecture has; recalibrate Subnet(supernet, arch)"
        )
    norms = list(named.values())
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    device, passed, finished = device_of(model), 0, False
    calls = dict.fromkeys(norms, 0)

    def count(norm: Any, args: object) -> None:
        calls[norm] += 1
        norm.momentum = 1.0 / calls[norm]  # what torch reads from the device, and waits for, where there is none

    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.training = True
            for batch in batches:
                args, kwargs, _ = unpack(batch)
                args, kwargs = move((args, kwargs), device)
                with autocast(device):
                    model(*args, **kwargs)
                passed += 1
        finished = True
    finally:
        for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
            norm.momentum = momentum
            hook.remove()
        reached = [calls[norm] > 0 or _has_counted(norm) for norm in norms]  # by a call or by its `forward`
        for norm, hit, buffers in zip(norms, reached, kept, strict=True):
            if not hit or not finished:
                norm.load_state_dict(buffers, strict=False)
    if not passed:
        raise ValueError("there are no batches to recompute BatchNorm statistics from")
    return {
        f"{name}.{key}": buffer.clone()
        for (name, norm), hit in zip(named.items(), reached, strict=True)
        if hit
        for key, buffer in norm.named_buffers()
    }


def _has_counted(norm: _BatchNorm) -> bool:
    return norm.num_batches_tracked is not None and int(norm.num_batches_tracked) > 0
