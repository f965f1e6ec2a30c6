"""The parts of a global-local block (paper, figures 2 and 3), plain and weight-entangled.

Shapes: tokens are (B, N, C), batch, tokens (class token included), channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.nn import ElasticBatchNorm1d, ElasticDepthwiseConv1d, ElasticLinear, depthwise_conv1d


def mix(x: Tensor, global_channels: int, attend: "Layer | None", convolve: "Layer | None") -> Tensor:
    """Run attention on the first channels and convolution on the rest, and join what they give."""
    if convolve is None:
        assert attend is not None
        return attend(x)
    if attend is None:
        return convolve(x)
    return torch.cat([attend(x[..., :global_channels]), convolve(x[..., global_channels:])], dim=-1)


Layer = Callable[[Tensor], Tensor]


def normalise_swish(x: Tensor, norm: nn.Module) -> Tensor:
    """Apply BatchNorm over all tokens of a batch, then Swish; as rows of channels, the tokens need no transposing."""
    return F.silu(norm(x.flatten(0, 1)).view_as(x))


class LocalConv(nn.Module):
    """The local sub-module: pointwise to 2EC, GLU, depthwise over the tokens, BatchNorm, Swish, pointwise back to C.

    The pointwise convolutions are Linear layers, which is what they compute; the depthwise one has `kernel_size` K
    (odd) and zero padding at both ends.
    """

    def __init__(self, channels: int, *, expansion: int, kernel_size: int) -> None:
        super().__init__()
        hidden = expansion * channels
        self.expand = nn.Linear(channels, 2 * hidden)
        self.depthwise = nn.Conv1d(hidden, hidden, kernel_size, padding="same", groups=hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.project = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        x = F.glu(self.expand(x), dim=-1).transpose(1, 2)
        x = depthwise_conv1d(x, self.depthwise.weight, self.depthwise.bias).transpose(1, 2)
        return self.project(normalise_swish(x, self.norm))


class ElasticLocalConv(nn.Module):
    """A local sub-module whose channels, expansion and kernel are slices of the largest one's."""

    def __init__(self, max_channels: int, *, max_hidden: int, max_kernel_size: int) -> None:
        super().__init__()
        self.value = ElasticLinear(max_channels, max_hidden)  # the GLU's two halves, so that each keeps its prefix
        self.gate = ElasticLinear(max_channels, max_hidden)
        self.depthwise = ElasticDepthwiseConv1d(max_hidden, max_kernel_size)
        self.norm = ElasticBatchNorm1d(max_hidden)
        self.project = ElasticLinear(max_hidden, max_channels)

    def forward(self, x: Tensor, *, expansion: int, kernel_size: int) -> Tensor:
        """Map (B, N, C) to (B, N, C) with the slice for C channels."""
        channels = x.shape[-1]
        hidden = expansion * channels
        x = (self.value(x, hidden) * torch.sigmoid(self.gate(x, hidden))).transpose(1, 2)
        x = self.depthwise(x, kernel_size).transpose(1, 2)
        return self.project(normalise_swish(x, self.norm), channels)

    @torch.no_grad()
    def extract(self, channels: int, *, expansion: int, kernel_size: int) -> LocalConv:
        """Return the plain sub-module with copies of the slices."""
        hidden = expansion * channels
        plain = LocalConv(channels, expansion=expansion, kernel_size=kernel_size)
        halves = [half.extract(hidden, channels) for half in (self.value, self.gate)]
        plain.expand.weight.copy_(torch.cat([half.weight for half in halves]))
        plain.expand.bias.copy_(torch.cat([half.bias for half in halves]))
        plain.depthwise = self.depthwise.extract(hidden, kernel_size)
        plain.norm = self.norm.extract(hidden)
        plain.project = self.project.extract(channels, hidden)
        return plain.to(self.value.weight.device, self.value.weight.dtype)
