"""Counting what a module really computes and holds."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nasx.train.modes import evaluating


@torch.no_grad()
def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Return the multiply-adds of one forward pass, as torch's flop counter finds them (it counts two flops each).

    Convolutions, linear layers and the two attention products count; norms, activations, biases and softmax do
    not. Give inputs with a batch of one for the MACs of one sample. Modes are restored.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque kernel that the counter does not know
    try:
        # fused attention kernels are not counted on every device, plain products are
        with evaluating(module), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            module(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    flops = counter.get_total_flops()
    assert flops % 2 == 0, f"{flops} flops are no whole number of multiply-adds"
    return int(flops // 2)


def count_params(module: nn.Module) -> int:
    """Return the number of a module's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
