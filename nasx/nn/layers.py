"""Plain parts of transformers, as they stand in extracted networks.

Shapes: tokens are (B, N, C), batch, tokens, channels; attention splits its inner width into heads of equal width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def head_width(inner: int, heads: int) -> int:
    """Return the width of each head; an inner width that does not divide among the heads is a ValueError."""
    if heads < 1 or inner < heads or inner % heads:
        raise ValueError(
            f"heads share the inner width equally, but got {heads} heads for {inner}; make it a multiple of the heads"
        )
    return inner // heads


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """Return multi-head scaled dot-product attention of queries `q`, keys `k` and values `v`, heads joined again.

    They are (B, N, inner), and keys and values may be of other tokens; values, and so the outputs, may have another
    width. `scale` defaults to the heads' width ** -0.5, and `dropout` is the probability that an attention weight is
    zeroed. A ValueError says that `heads` do not divide a width.
    """
    for t in (q, k, v):
        head_width(t.shape[-1], heads)
    q, k, v = (torch.unflatten(t, -1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention: tokens (B, N, dim) to (B, N, out_dim).

    `heads` share `inner`, the width of q, k and v over all heads; it and `out_dim` are `dim` by default. The layer
    `qkv` packs q, k and v along its rows, head by head inside each, as timm does, with biases if `qkv_bias`. `scale`
    multiplies the products of queries and keys; by default it is the width of a head ** -0.5. `dropout` is the
    probability that an attention weight is zeroed in training. A ValueError says that `heads` do not divide `inner`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        inner: int | None = None,
        out_dim: int | None = None,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        inner = dim if inner is None else inner
        head_width(inner, heads)
        self.heads, self.scale, self.dropout = heads, scale, dropout
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.proj = nn.Linear(inner, dim if out_dim is None else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, dim) to (B, N, out_dim)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        dropout = self.dropout if self.training else 0.0
        return self.proj(attend(q, k, v, self.heads, scale=self.scale, dropout=dropout))

    def extra_repr(self) -> str:
        """Return what `repr` shows beside the layers."""
        return f"heads={self.heads}, scale={self.scale}, dropout={self.dropout}"


class FeedForward(nn.Module):
    """Linear from `dim` to `hidden`, activation, Linear back, dropout after each; the names are timm's.

    `activation` builds the module between them; `dropout` is a probability.
    """

    def __init__(
        self, dim: int, hidden: int, *, activation: Callable[[], nn.Module] = nn.GELU, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = activation()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"`0 <= rate < 1` must hold, but got {rate}; leave the branch out to drop it always")


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero whole samples of a residual branch `x` with the probability `rate`, and scale the others up.

    Samples lie along the first dimension; the draw is torch's default generator's on x's device. `rate` is at least 0
    and below 1, else a ValueError. Without `training` x is returned. Source: stochastic depth (Huang et al., 2016).
    """
    _check_rate(rate)
    if rate == 0 or not training:
        return x
    kept = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - rate)
    return x * kept.div_(1 - rate)


class DropPath(nn.Module):
    """`drop_path` as a module: in training, each sample's branch is zeroed with the probability `rate`."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        _check_rate(rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape with the batch first to itself."""
        return drop_path(x, self.rate, self.training)

    def extra_repr(self) -> str:
        """Return what `repr` shows of this module."""
        return f"rate={self.rate}"
