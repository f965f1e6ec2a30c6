"""Depthwise convolution of token sequences, with gradients that CPUs compute in a fraction of torch's own time.

Shapes: B samples, C channels, N tokens, kernels of K taps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 2**18  # elements that the gradient of long kernels is taken of together, so that they stay in caches


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve each channel of `x` (B, C, N) with its own odd kernel of `weight` (C, 1, K); the length stays N.

    Both ends are padded with zeros; `bias` (C) is added where there is one. Even kernels are a ValueError.

    The same numbers as `F.conv1d`, which copies its input to a channels-first layout that oneDNN trains slowly in.
    As an image of height one, transposed tokens (B, N, C) stay as they lie in memory.

    In training on a CPU in single precision the gradients are computed by functions of their own from K = 5 on, one and
    a half times as fast as torch's, from K = 15 on three times or more, and equal up to rounding.
    """
    if weight.shape[-1] % 2 == 0:
        raise ValueError(
            f"kernels must be odd for the length to stay, but got {weight.shape[-1]} taps; add or drop one"
        )
    image = x.transpose(1, 2).contiguous().transpose(1, 2).unsqueeze(2)  # channels last, as vmap can do it too
    if _trains_on_cpu(image, weight):
        return _DepthwiseConv.apply(image, weight, bias).squeeze(2)
    return _convolve(image, weight, bias).squeeze(2)


def _convolve(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    channels, _, taps = weight.shape
    return F.conv2d(image, weight.unsqueeze(2), bias, padding=(0, taps // 2), groups=channels)


def _trains_on_cpu(image: Tensor, weight: Tensor) -> bool:
    return (
        weight.shape[-1] >= 5  # three taps have a fast kernel in oneDNN
        and image.device.type == "cpu"
        and image.dtype == weight.dtype == torch.float32
        and torch.is_grad_enabled()
        and (image.requires_grad or weight.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _DepthwiseConv(torch.autograd.Function):
    """The convolution of images (B, C, 1, N), whose three gradients are taken one by one.

    oneDNN's kernel for all three is slower than those for one each, where there are five taps or more.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(image, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        image, weight, _ = inputs
        ctx.save_for_backward(image, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        of_image, of_weight, of_bias = ctx.needs_input_grad
        return (
            _gradients(gradient, image, weight, (True, False))[0] if of_image else None,
            kernel_gradient(gradient, image, weight) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
        )


def _gradients(gradient: Tensor, image: Tensor, weight: Tensor, which: tuple[bool, bool]) -> tuple[Any, ...]:
    channels, _, taps = weight.shape
    found: tuple[Any, ...] = torch.ops.aten.convolution_backward(
        gradient, image, weight.unsqueeze(2), None, [1, 1], [0, taps // 2], [1, 1], False, [0, 0], channels,
        [*which, False],
    )  # fmt: skip
    return found


def kernel_gradient(gradient: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient (C, 1, K) of the kernels, given that of the outputs and the inputs, both (B, C, 1, N)."""
    channels, _, taps = weight.shape
    if taps < 15:  # above, oneDNN has no kernel of its own for it
        return _gradients(gradient, image, weight, (False, True))[1].squeeze(2)
    # What tap k gathers is the sum over tokens n of gradient[n] * padded[n + k]: a convolution, too, of each sample's
    # inputs with its gradients as the kernels. A few samples at once are the channels of one.
    batch, tokens = len(image), image.shape[-1]
    few = max(1, _AT_ONCE // (channels * tokens))
    found = gradient.new_zeros(taps, channels)
    for start in range(0, batch, few):
        kernels = gradient[start : start + few].reshape(-1, 1, 1, tokens)
        inputs = image[start : start + few].squeeze(2).permute(2, 0, 1).reshape(1, 1, tokens, -1).permute(0, 3, 1, 2)
        products = F.conv2d(inputs, kernels, padding=(0, taps // 2), groups=len(kernels))
        found = found + products.permute(0, 2, 3, 1).reshape(taps, -1, channels).sum(dim=1)
    return found.t().unsqueeze(1)
