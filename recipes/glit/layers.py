"""The parts of a global-local block (paper, figures 2 and 3), plain and weight-entangled.

Shapes: tokens are (B, N, C), batch, tokens (class token included), channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.nn import ElasticBatchNorm1d, ElasticDepthwiseConv1d, ElasticLinear, depthwise_conv1d

Layer = Callable[[Tensor], Tensor]


def mix(
    x: Tensor, split: int | None, attend: Layer | None, convolve: Layer | None, project: Layer | None = None
) -> Tensor:
    """Run attention and convolution, join what they give, and project it where they do not project it themselves.

    Attention reads the first `split` channels and convolution the others; both read all where it is None.
    """
    if attend is None or convolve is None:
        only = attend or convolve
        assert only is not None
        joined = only(x)
    else:
        first, last = (x, x) if split is None else (x[..., :split], x[..., split:])
        joined = torch.cat([attend(first), convolve(last)], dim=-1)
    return joined if project is None else project(joined)


def normalise(x: Tensor, norm: nn.Module) -> Tensor:
    """Apply BatchNorm over all tokens of a batch; as rows of channels, the tokens need no transposing."""
    return norm(x.flatten(0, 1)).view_as(x)


def convolve_tokens(
    x: Tensor,
    gate: Layer,
    depthwise: Layer,
    norm: nn.Module,
    project: Layer,
    project_norm: nn.Module | None,
    drop: Layer,
) -> Tensor:
    """Run a local sub-module: gated pointwise, depthwise and pointwise convolution, each as its variant finishes it."""
    x = depthwise(drop(gate(x)).transpose(1, 2)).transpose(1, 2)
    x = project(drop(F.silu(normalise(x, norm))))
    return drop(x if project_norm is None else F.silu(normalise(x, project_norm)))


class LocalConv(nn.Module):
    """The local sub-module: pointwise to 2EC, GLU, depthwise over the tokens, BatchNorm, Swish, pointwise to C.

    The pointwise convolutions are Linear layers, which is what they compute; the depthwise one has `kernel_size` K
    (odd) and zero padding at both ends. It reads `in_channels`, C by default. With `norm_every` the pointwise
    convolutions are followed by BatchNorm as well, and the last one by Swish too; `dropout` follows each of the three.
    """

    def __init__(
        self,
        channels: int,
        *,
        expansion: int,
        kernel_size: int,
        in_channels: int | None = None,
        norm_every: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = expansion * channels
        self.expand = nn.Linear(channels if in_channels is None else in_channels, 2 * hidden)
        self.depthwise = nn.Conv1d(hidden, hidden, kernel_size, padding="same", groups=hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.project = nn.Linear(hidden, channels)
        self.expand_norm = nn.BatchNorm1d(2 * hidden) if norm_every else None
        self.project_norm = nn.BatchNorm1d(channels) if norm_every else None
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, in_channels) to (B, N, C)."""
        return convolve_tokens(x, self._gate, self._convolve, self.norm, self.project, self.project_norm, self.drop)

    def _gate(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        return F.glu(x if self.expand_norm is None else normalise(x, self.expand_norm), dim=-1)

    def _convolve(self, x: Tensor) -> Tensor:
        return depthwise_conv1d(x, self.depthwise.weight, self.depthwise.bias)


class ElasticLocalConv(nn.Module):
    """A local sub-module whose channels, expansion and kernel are slices of the largest one's."""

    def __init__(
        self,
        max_channels: int,
        *,
        max_hidden: int,
        max_kernel_size: int,
        max_in_channels: int | None = None,
        norm_every: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        max_in_channels = max_channels if max_in_channels is None else max_in_channels
        self.value = ElasticLinear(max_in_channels, max_hidden)  # the GLU's two halves, so that each keeps its prefix
        self.gate = ElasticLinear(max_in_channels, max_hidden)
        self.depthwise = ElasticDepthwiseConv1d(max_hidden, max_kernel_size)
        self.norm = ElasticBatchNorm1d(max_hidden)
        self.project = ElasticLinear(max_hidden, max_channels)
        self.value_norm = ElasticBatchNorm1d(max_hidden) if norm_every else None
        self.gate_norm = ElasticBatchNorm1d(max_hidden) if norm_every else None
        self.project_norm = ElasticBatchNorm1d(max_channels) if norm_every else None
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, channels: int, expansion: int, kernel_size: int) -> Tensor:
        """Map (B, N, in_channels) to (B, N, C) with the slice for C channels; those it reads follow x."""
        hidden = expansion * channels

        def gate(x: Tensor) -> Tensor:
            value, gate = self.value(x, hidden), self.gate(x, hidden)
            if self.value_norm is not None and self.gate_norm is not None:
                value, gate = normalise(value, self.value_norm), normalise(gate, self.gate_norm)
            return value * torch.sigmoid(gate)

        def convolve(x: Tensor) -> Tensor:
            return self.depthwise(x, kernel_size)

        def project(x: Tensor) -> Tensor:
            return self.project(x, channels)

        return convolve_tokens(x, gate, convolve, self.norm, project, self.project_norm, self.drop)

    @torch.no_grad()
    def extract(self, channels: int, *, expansion: int, kernel_size: int, in_channels: int | None = None) -> LocalConv:
        """Return the plain sub-module with copies of the slices."""
        hidden = expansion * channels
        in_channels = channels if in_channels is None else in_channels
        plain = LocalConv(
            channels,
            expansion=expansion,
            kernel_size=kernel_size,
            in_channels=in_channels,
            norm_every=self.project_norm is not None,
            dropout=self.drop.p,
        ).to(self.value.weight.device, self.value.weight.dtype)
        _stack(plain.expand, self.value.extract(hidden, in_channels), self.gate.extract(hidden, in_channels))
        plain.depthwise = self.depthwise.extract(hidden, kernel_size)
        plain.norm = self.norm.extract(hidden)
        plain.project = self.project.extract(channels, hidden)
        if self.value_norm is not None and self.gate_norm is not None and self.project_norm is not None:
            assert plain.expand_norm is not None
            plain.expand_norm.momentum = self.value_norm.momentum
            _stack(plain.expand_norm, self.value_norm.extract(hidden), self.gate_norm.extract(hidden))
            plain.project_norm = self.project_norm.extract(channels)
        return plain.train(self.training)


def _stack(whole: nn.Module, first: nn.Module, second: nn.Module) -> None:
    """Give a layer the weights of two, one below the other; single numbers, such as a count of batches, are alike."""
    others = second.state_dict()
    whole.load_state_dict(
        {name: torch.cat([own, others[name]]) if own.ndim else own for name, own in first.state_dict().items()}
    )


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
    """Return the outputs (B, N, V) of some heads, joined, for queries and keys of one width and values of another."""
    q, k, v = (t.reshape(*t.shape[:2], heads, t.shape[-1] // heads).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)


class Heads(nn.Module):
    """Attention heads that leave the output projection to their block: tokens (B, N, dim) to (B, N, channels).

    Queries and keys have the `inner` width, values that of the heads' own channels.
    """

    def __init__(self, dim: int, heads: int, *, inner: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v = nn.Linear(dim, inner), nn.Linear(dim, inner), nn.Linear(dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, dim) to (B, N, channels)."""
        return attend(self.q(x), self.k(x), self.v(x), self.heads, self.dropout if self.training else 0.0)


class ElasticHeads(nn.Module):
    """`Heads` whose widths are prefixes of the largest ones."""

    def __init__(self, max_dim: int, *, max_inner: int, max_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.q, self.k = ElasticLinear(max_dim, max_inner), ElasticLinear(max_dim, max_inner)
        self.v = ElasticLinear(max_dim, max_channels)

    def forward(self, x: Tensor, *, heads: int, inner: int, out_dim: int) -> Tensor:
        """Map (B, N, dim) to (B, N, out_dim) with the slice for some heads; the width it reads follows x."""
        dropout = self.dropout if self.training else 0.0
        return attend(self.q(x, inner), self.k(x, inner), self.v(x, out_dim), heads, dropout)

    def extract(self, dim: int, *, heads: int, inner: int, out_dim: int) -> Heads:
        """Return the plain heads with copies of the slices."""
        with torch.device("meta"):
            plain = Heads(dim, heads, inner=inner, channels=out_dim, dropout=self.dropout)
        plain.q, plain.k = self.q.extract(inner, dim), self.k.extract(inner, dim)
        plain.v = self.v.extract(out_dim, dim)
        return plain.train(self.training)
