"""The locally-enhanced feed-forward.

It is an inverted residual over the image that the patch tokens make. Shapes: tokens are (B, N, C), batch, tokens,
channels; images are (B, C, H, W), square.
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu6": nn.ReLU6, "hardswish": nn.Hardswish}
GATES: Mapping[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}


def function(name: str, functions: Mapping[str, type[nn.Module]], what: str) -> nn.Module:
    """Return one of some functions as a module; an unknown name is a ValueError."""
    if name not in functions:
        raise ValueError(f"{what} must be one of {', '.join(functions)}, but got {name!r}")
    return functions[name]()


def to_image(tokens: Tensor) -> Tensor:
    """Put patch tokens (B, N, C), row by row, back on their square grid (B, C, H, W)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side)


def to_tokens(image: Tensor) -> Tensor:
    """Return an image's pixels as tokens, row by row."""
    return image.flatten(2).transpose(1, 2)


class SqueezeExcitation(nn.Module):
    """Channel attention by a bottleneck of their means: images (B, C, H, W) to themselves, scaled.

    The bottleneck has a width of C // `reduction`, at least 1.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction must be from 1 to the hidden width {channels}, but got {reduction}; lower it")
        squeezed = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels), nn.Hardsigmoid()
        )

    def forward(self, image: Tensor) -> Tensor:
        """Scale the channels of images."""
        return image * self.fc(image.mean((2, 3)))[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    """ECA, channel attention by a convolution along the channels: images (B, C, H, W) to themselves, scaled.

    ECA-Net's rule says over how many neighbours (Wang et al., CVPR 2020), with its own gamma of 2 and b of 1, as
    LocalViT has it: log2(C)/2 + 1/2, cut to a whole number, made odd.
    """

    def __init__(self, channels: int, gate: str) -> None:
        super().__init__()
        self.gate = function(gate, GATES, "a gate")
        kernel_size = int((math.log2(channels) + 1) / 2) | 1
        self.conv = nn.Conv1d(1, 1, kernel_size, padding="same", bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Scale the channels of images."""
        scale = self.gate(self.conv(image.mean((2, 3)).unsqueeze(1)))
        return image * scale.transpose(1, 2).unsqueeze(-1)


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
        self.act = function(activation, ACTIVATIONS, "an activation")
        self.expand = nn.Linear(dim, hidden, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size, padding="same", groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.attention = attention
        self.project = nn.Linear(hidden, dim, bias=False)
        self.norm3 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map patch tokens (B, N, dim), N a square, to (B, N, dim)."""
        image = self.act(self.norm1(to_image(self.expand(x))))
        image = self.act(self.norm2(self.depthwise(image)))
        if self.attention is not None:
            image = self.attention(image)
        return to_tokens(self.norm3(to_image(self.project(to_tokens(image)))))
