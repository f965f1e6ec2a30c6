"""The locally-enhanced feed-forward, plain and weight-entangled.

It is an inverted residual over the image that the patch tokens make. Shapes: tokens are (B, N, C), batch, tokens,
channels; images are (B, C, H, W), square.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.nn import ElasticBatchNorm2d, ElasticDepthwiseConv1d, ElasticDepthwiseConv2d, ElasticLinear

Layer = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Layer] = {"relu6": F.relu6, "hardswish": F.hardswish}
GATES: dict[str, Layer] = {"sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid}


def known(name: str, functions: dict[str, Layer], what: str) -> str:
    """Return the name of one of some functions; an unknown one is a ValueError."""
    if name not in functions:
        raise ValueError(f"{what} must be one of {', '.join(functions)}, but got {name!r}")
    return name


def to_image(tokens: Tensor) -> Tensor:
    """Put patch tokens (B, N, C), row by row, back on their square grid (B, C, H, W)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side)


def to_tokens(image: Tensor) -> Tensor:
    """Return an image's pixels as tokens, row by row."""
    return image.flatten(2).transpose(1, 2)


def beside_class_token(x: Tensor, ffn: Layer) -> Tensor:
    """Add a feed-forward's output to the patch tokens; the class token, the first, passes unchanged."""
    patches = x[:, 1:]
    return torch.cat([x[:, :1], patches + ffn(patches)], dim=1)


def run_local(
    x: Tensor,
    expand: Layer,
    norm1: Layer,
    depthwise: Layer,
    norm2: Layer,
    activation: str,
    attend: Layer | None,
    project: Layer,
    norm3: Layer,
) -> Tensor:
    """Map patch tokens (B, N, C) to (B, N, C); pointwise convolutions run on tokens, as the Linear layers they are."""
    act = ACTIVATIONS[activation]
    image = act(norm1(to_image(expand(x))))
    image = act(norm2(depthwise(image)))
    if attend is not None:
        image = attend(image)
    return to_tokens(norm3(to_image(project(to_tokens(image)))))


def squeezed_width(hidden: int, reduction: int) -> int:
    """Return the width inside squeeze-excitation, at least 1."""
    if not 1 <= reduction <= hidden:
        raise ValueError(f"a reduction must be from 1 to the hidden width {hidden}, but got {reduction}")
    return hidden // reduction


def squeeze_excite(image: Tensor, fc1: Layer, fc2: Layer) -> Tensor:
    """Scale the channels by what their means say: two Linear layers with ReLU between, h-sigmoid gate."""
    gate = F.hardsigmoid(fc2(F.relu(fc1(image.mean((2, 3))))))
    return image * gate[:, :, None, None]


class SqueezeExcitation(nn.Module):
    """Channel attention by a bottleneck: images (B, C, H, W) to themselves, scaled."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, image: Tensor) -> Tensor:
        """Scale the channels of images."""
        return squeeze_excite(image, self.fc1, self.fc2)


class ElasticSqueezeExcitation(nn.Module):
    """A squeeze-excitation whose channels and inner width are prefixes."""

    def __init__(self, max_channels: int, max_squeezed: int) -> None:
        super().__init__()
        self.fc1 = ElasticLinear(max_channels, max_squeezed)
        self.fc2 = ElasticLinear(max_squeezed, max_channels)

    def forward(self, image: Tensor, squeezed: int) -> Tensor:
        """Scale the channels of images (B, C, H, W) through an inner width."""
        return squeeze_excite(image, lambda x: self.fc1(x, squeezed), lambda x: self.fc2(x, image.shape[1]))

    def extract(self, channels: int, squeezed: int) -> SqueezeExcitation:
        """Return the plain layer of a size."""
        with torch.device("meta"):
            plain = SqueezeExcitation(channels, squeezed)
        plain.fc1, plain.fc2 = self.fc1.extract(squeezed, channels), self.fc2.extract(channels, squeezed)
        return plain


def eca_kernel_size(channels: int) -> int:
    """Return over how many neighbouring channels ECA looks: log2(C)/2 + 1/2, cut to a whole number, made odd.

    ECA-Net's rule (Wang et al., CVPR 2020) with its own gamma of 2 and b of 1, as LocalViT has it.
    """
    return int((math.log2(channels) + 1) / 2) | 1


def channel_gate(image: Tensor, convolve: Layer, gate: str) -> Tensor:
    """Scale the channels by what a convolution along them makes of their means."""
    scale = GATES[gate](convolve(image.mean((2, 3)).unsqueeze(1)))
    return image * scale.transpose(1, 2).unsqueeze(-1)


class EfficientChannelAttention(nn.Module):
    """ECA, channel attention by a convolution along the channels: images (B, C, H, W) to themselves, scaled."""

    def __init__(self, channels: int, gate: str) -> None:
        super().__init__()
        self.gate = known(gate, GATES, "a gate")
        self.conv = nn.Conv1d(1, 1, eca_kernel_size(channels), padding="same", bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Scale the channels of images."""
        return channel_gate(image, self.conv, self.gate)

    def extra_repr(self) -> str:
        """Return what `repr` shows beside the layers."""
        return f"gate={self.gate}"


class ElasticECA(nn.Module):
    """An ECA whose kernel, which follows the channels, is centred in the largest."""

    def __init__(self, max_channels: int, gate: str) -> None:
        super().__init__()
        self.gate = known(gate, GATES, "a gate")
        self.conv = ElasticDepthwiseConv1d(1, eca_kernel_size(max_channels), bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Scale the channels of images (B, C, H, W)."""
        kernel_size = eca_kernel_size(image.shape[1])
        return channel_gate(image, lambda x: self.conv(x, kernel_size), self.gate)

    def extract(self, channels: int) -> EfficientChannelAttention:
        """Return the plain layer for some channels."""
        with torch.device("meta"):
            plain = EfficientChannelAttention(channels, self.gate)
        plain.conv = self.conv.extract(1, eca_kernel_size(channels))
        return plain


class LocalFeedForward(nn.Module):
    """Pointwise, depthwise, pointwise, each with BatchNorm; the activation after the first two, then `attention`.

    No convolution has a bias, and the residual stands outside. The pointwise convolutions are Linear layers, which is
    what they compute.
    """

    def __init__(
        self, dim: int, hidden: int, *, kernel_size: int, activation: str, attention: nn.Module | None = None
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"a kernel size must be odd, so that the image keeps its size, but got {kernel_size}")
        self.activation = known(activation, ACTIVATIONS, "an activation")
        self.expand = nn.Linear(dim, hidden, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size, padding="same", groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.attention = attention
        self.project = nn.Linear(hidden, dim, bias=False)
        self.norm3 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map patch tokens (B, N, dim), N a square, to (B, N, dim)."""
        return run_local(
            x,
            self.expand,
            self.norm1,
            self.depthwise,
            self.norm2,
            self.activation,
            self.attention,
            self.project,
            self.norm3,
        )

    def extra_repr(self) -> str:
        """Return what `repr` shows beside the layers."""
        return f"activation={self.activation}"


class ElasticLocalFeedForward(nn.Module):
    """A local feed-forward whose hidden width is a prefix and whose kernel is centred in the largest."""

    def __init__(self, dim: int, max_hidden: int, *, max_kernel_size: int, activation: str) -> None:
        super().__init__()
        self.activation = known(activation, ACTIVATIONS, "an activation")
        self.expand = ElasticLinear(dim, max_hidden, bias=False)
        self.norm1 = ElasticBatchNorm2d(max_hidden)
        self.depthwise = ElasticDepthwiseConv2d(max_hidden, max_kernel_size, bias=False)
        self.norm2 = ElasticBatchNorm2d(max_hidden)
        self.project = ElasticLinear(max_hidden, dim, bias=False)
        self.norm3 = ElasticBatchNorm2d(dim)

    def forward(self, x: Tensor, *, hidden: int, kernel_size: int, attend: Layer | None) -> Tensor:
        """Map patch tokens (B, N, dim), N a square, to (B, N, dim), with a channel attention on the hidden image."""
        return run_local(
            x,
            lambda tokens: self.expand(tokens, hidden),
            self.norm1,
            lambda image: self.depthwise(image, kernel_size),
            self.norm2,
            self.activation,
            attend,
            self.project,
            self.norm3,
        )

    def extract(self, *, hidden: int, kernel_size: int, attention: nn.Module | None) -> LocalFeedForward:
        """Return the plain feed-forward of a size, which takes the given channel attention in."""
        dim = self.expand.in_features
        with torch.device("meta"):
            plain = LocalFeedForward(dim, hidden, kernel_size=kernel_size, activation=self.activation)
        plain.expand, plain.norm1 = self.expand.extract(hidden, dim), self.norm1.extract(hidden)
        plain.depthwise, plain.norm2 = self.depthwise.extract(hidden, kernel_size), self.norm2.extract(hidden)
        plain.attention = attention
        plain.project, plain.norm3 = self.project.extract(dim, hidden), self.norm3.extract(dim)
        return plain
