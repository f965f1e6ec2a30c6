"""Depthwise convolution of tokens: values and gradients are those of torch's own convolution, however it is called."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.nn import depthwise_conv1d

# kernels of three ways to take gradients, also wider than the tokens are
KERNELS = [(17, 3), (17, 5), (9, 9), (17, 13), (17, 15), (40, 15), (40, 31), (11, 45), (65, 17), (1, 1), (2, 17)]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv1d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


def inputs(tokens: int, taps: int, *, batch: int = 3, channels: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(taps)
    shapes = (batch, tokens, channels), (channels, 1, taps), (channels,)
    x, weight, bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return x, weight, bias


def outcome(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    y = function(x.transpose(1, 2), weight, bias).transpose(1, 2)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    wanted = [tensor for tensor in (x, weight, bias) if tensor is not None and tensor.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, upstream)]


@pytest.mark.parametrize(("tokens", "taps"), KERNELS)
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_torchs(tokens: int, taps: int, biased: bool) -> None:
    x, weight, bias = inputs(tokens, taps)
    for found, expected in zip(
        outcome(depthwise_conv1d, x, weight, bias if biased else None),
        outcome(plain, x, weight, bias if biased else None),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("taps", [5, 31])
def test_only_the_gradients_that_are_wanted_are_taken(taps: int) -> None:
    x, weight, bias = inputs(40, taps)
    for frozen in ((x,), (weight,), (bias,), (weight, bias)):
        for tensor in (x, weight, bias):
            tensor.requires_grad_(all(tensor is not other for other in frozen))
        for found, expected in zip(
            outcome(depthwise_conv1d, x, weight, bias), outcome(plain, x, weight, bias), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("taps", [5, 31])
def test_many_samples_are_taken_a_few_at_a_time(taps: int) -> None:
    x, weight, bias = inputs(33, taps, batch=70, channels=300)
    for found, expected in zip(
        outcome(depthwise_conv1d, x, weight, bias), outcome(plain, x, weight, bias), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="must be odd for the length to stay, but got 4 taps"):
        depthwise_conv1d(torch.randn(2, 3, 8), torch.randn(3, 1, 4))


@pytest.mark.parametrize("taps", [3, 5, 31])
def test_a_batch_may_be_empty(taps: int) -> None:
    x, weight, bias = inputs(20, taps, batch=0)
    y, of_x, of_weight, of_bias = outcome(depthwise_conv1d, x, weight, bias)
    assert y.shape == of_x.shape == (0, 20, 6)
    assert not of_weight.any()
    assert not of_bias.any()


@pytest.mark.parametrize("taps", [3, 5, 17])
def test_several_networks_at_once_by_vmap(taps: int) -> None:
    samples = [inputs(20, taps), inputs(20, taps)]
    stacked = [torch.stack(tensors).detach() for tensors in zip(*samples, strict=True)]

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv1d(x.transpose(1, 2), weight, bias).square().sum()

    together = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*stacked)
    for number, tensors in enumerate(samples):
        for found, expected in zip(together, torch.autograd.grad(loss(*tensors), tensors), strict=True):
            torch.testing.assert_close(found[number], expected, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("taps", [5, 17])
def test_gradients_of_gradients(taps: int) -> None:
    x, weight, bias = inputs(6, taps, batch=2, channels=2)

    def penalty(function: Callable[..., Tensor]) -> list[Tensor]:
        y = function(x.transpose(1, 2), weight, bias)
        first = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
        return list(torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), (x, weight)))

    for found, expected in zip(penalty(depthwise_conv1d), penalty(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


class Net(nn.Module):
    def __init__(self, taps: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, taps, padding="same", groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv1d(x, self.conv.weight, self.conv.bias)


@pytest.mark.parametrize("taps", [5, 31])
def test_exported_programs_hold_the_plain_convolution(taps: int) -> None:
    x = torch.randn(2, 4, 12)
    program = torch.export.export(Net(taps), (x,))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert [call for call in calls if "conv" in str(call)] == [torch.ops.aten.conv2d.default]
    net = Net(taps)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16
    wide = copy.deepcopy(net).double()
    torch.testing.assert_close(wide(x.double()).float(), net(x))
