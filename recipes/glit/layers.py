"""The two sub-modules of a global-local block (paper, figures 2 and 3).

Shapes: tokens are (B, N, C), batch, tokens (class token first where there is one), channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.nn import attend, depthwise_conv1d


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over all tokens of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to itself; as rows of channels, tokens need no transposing."""
        return super().forward(x.flatten(0, 1)).view_as(x)


class LocalConv(nn.Module):
    """The local sub-module: pointwise to 2EC, GLU, depthwise over the tokens, BatchNorm, Swish, pointwise to C.

    The pointwise convolutions are Linear layers, which is what they compute; the depthwise one has `kernel_size` K
    (odd) and zeros around, and is two-dimensional given the side of a `grid` of patches. The first reads `in_channels`,
    C by default. With `norm_every` the pointwise convolutions are followed by BatchNorm as well, and the last one by
    Swish too; `dropout` follows each of the three.
    """

    def __init__(
        self,
        channels: int,
        *,
        expansion: int,
        kernel_size: int,
        in_channels: int | None = None,
        grid: int | None = None,
        norm_every: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = expansion * channels
        self.grid = grid
        self.expand = nn.Linear(channels if in_channels is None else in_channels, 2 * hidden)
        self.expand_norm = TokenBatchNorm(2 * hidden) if norm_every else None
        convolution = nn.Conv1d if grid is None else nn.Conv2d
        self.depthwise = convolution(hidden, hidden, kernel_size, padding="same", groups=hidden)
        self.norm = TokenBatchNorm(hidden)
        self.project = nn.Linear(hidden, channels)
        self.project_norm = TokenBatchNorm(channels) if norm_every else None
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, in_channels) to (B, N, C)."""
        x = self.expand(x)
        if self.expand_norm is not None:
            x = self.expand_norm(x)
        x = self.convolve(self.drop(F.glu(x, dim=-1)))
        x = self.project(self.drop(F.silu(self.norm(x))))
        if self.project_norm is not None:
            x = F.silu(self.project_norm(x))
        return self.drop(x)

    def convolve(self, x: Tensor) -> Tensor:
        """Apply the depthwise convolution, along the row of tokens or over the grid of patches that they are."""
        x = x.transpose(1, 2)
        if self.grid is None:
            x = depthwise_conv1d(x, self.depthwise.weight, self.depthwise.bias)
        else:
            x = self.depthwise(torch.unflatten(x, 2, (self.grid, self.grid))).flatten(2)
        return x.transpose(1, 2)


def attend_in_windows(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float, window: int) -> Tensor:
    """Return the attention where each patch sees the successive patches of its own window and the class token.

    The class token sees all; the window divides the number of patches.
    """
    windows = (q.shape[1] - 1) // window

    def cut(t: Tensor) -> Tensor:
        return t[:, 1:].reshape(-1, windows, window, t.shape[-1])

    def with_class_token(t: Tensor) -> Tensor:
        return torch.cat([t[:, None, :1].expand(-1, windows, -1, -1), cut(t)], dim=2).flatten(0, 1)

    class_token = attend(q[:, :1], k, v, heads, dropout=dropout)
    patches = attend(cut(q).flatten(0, 1), with_class_token(k), with_class_token(v), heads, dropout=dropout)
    return torch.cat([class_token, patches.reshape(-1, windows * window, v.shape[-1])], dim=1)


class Heads(nn.Module):
    """Attention heads, of all tokens or inside windows, with an output projection or none: (B, N, dim) to channels.

    Queries and keys have the `inner` width. With a projection (`projected`), so have the values; without one, theirs
    is that of the heads' own channels, and the block projects. `qkv` packs the three along its rows, each head by head.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        inner: int,
        channels: int,
        projected: bool = True,
        window: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.window, self.dropout = heads, window, dropout
        self.widths = inner, inner, inner if projected else channels
        self.qkv = nn.Linear(dim, sum(self.widths))
        self.proj = nn.Linear(inner, channels) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, dim) to (B, N, channels)."""
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        dropout = self.dropout if self.training else 0.0
        if self.window is None:
            x = attend(q, k, v, self.heads, dropout=dropout)
        else:
            x = attend_in_windows(q, k, v, self.heads, dropout, self.window)
        return x if self.proj is None else self.proj(x)

    def extra_repr(self) -> str:
        """Return what `repr` shows beside the layers."""
        return f"heads={self.heads}, window={self.window}, dropout={self.dropout}"
