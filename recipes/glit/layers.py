"""The parts of a global-local block (paper, figures 2 and 3), plain and weight-entangled.

Shapes: tokens are (B, N, C), batch, tokens (class token first where there is one), channels.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.nn import ElasticBatchNorm1d, ElasticDepthwiseConv1d, ElasticDepthwiseConv2d, ElasticLinear, depthwise_conv1d

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


def convolve_grid(x: Tensor, grid: int, depthwise: Layer) -> Tensor:
    """Convolve tokens (B, C, N) as the square image of patches that they are."""
    return depthwise(x.reshape(*x.shape[:2], grid, grid)).flatten(2)


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
        convolution = nn.Conv1d if grid is None else nn.Conv2d
        self.depthwise = convolution(hidden, hidden, kernel_size, padding="same", groups=hidden)
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
        if self.grid is not None:
            return convolve_grid(x, self.grid, self.depthwise)
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
        grid: int | None = None,
        norm_every: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid = grid
        max_in_channels = max_channels if max_in_channels is None else max_in_channels
        self.value = ElasticLinear(max_in_channels, max_hidden)  # the GLU's two halves, so that each keeps its prefix
        self.gate = ElasticLinear(max_in_channels, max_hidden)
        convolution = ElasticDepthwiseConv1d if grid is None else ElasticDepthwiseConv2d
        self.depthwise = convolution(max_hidden, max_kernel_size)
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
            depthwise = partial(self.depthwise, kernel_size=kernel_size)
            return depthwise(x) if self.grid is None else convolve_grid(x, self.grid, depthwise)

        def project(x: Tensor) -> Tensor:
            return self.project(x, channels)

        return convolve_tokens(x, gate, convolve, self.norm, project, self.project_norm, self.drop)

    @torch.no_grad()
    def extract(self, in_channels: int, *, channels: int, expansion: int, kernel_size: int) -> LocalConv:
        """Return the plain sub-module with copies of the slices."""
        hidden = expansion * channels
        plain = LocalConv(
            channels,
            expansion=expansion,
            kernel_size=kernel_size,
            in_channels=in_channels,
            grid=self.grid,
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


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float, window: int | None = None) -> Tensor:
    """Return the outputs (B, N, V) of some heads, joined, for queries and keys of one width and values of another.

    In windows, each patch sees the successive patches of its own and the class token, which sees all; the window
    divides the number of patches.
    """
    if window is not None:
        return _attend_in_windows(q, k, v, heads, dropout, window)
    q, k, v = (t.reshape(*t.shape[:2], heads, t.shape[-1] // heads).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)


def _attend_in_windows(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float, window: int) -> Tensor:
    windows = (q.shape[1] - 1) // window

    def cut(t: Tensor) -> Tensor:
        return t[:, 1:].reshape(-1, windows, window, t.shape[-1])

    def with_class_token(t: Tensor) -> Tensor:
        return torch.cat([t[:, None, :1].expand(-1, windows, -1, -1), cut(t)], dim=2).flatten(0, 1)

    class_token = attend(q[:, :1], k, v, heads, dropout)
    patches = attend(cut(q).flatten(0, 1), with_class_token(k), with_class_token(v), heads, dropout)
    return torch.cat([class_token, patches.reshape(-1, windows * window, v.shape[-1])], dim=1)


class Heads(nn.Module):
    """Attention heads, of all tokens or inside windows, with an output projection or none: (B, N, dim) to channels.

    Queries and keys have the `inner` width. With a projection (`projected`), so have the values; without one, theirs
    is that of the heads' own channels, and the block projects.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        inner: int,
        channels: int,
        projected: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.window, self.dropout = heads, window, dropout
        self.q, self.k = nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.v = nn.Linear(dim, inner if projected else channels)
        self.proj = nn.Linear(inner, channels) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, dim) to (B, N, channels)."""
        q, k, v, dropout = self.q(x), self.k(x), self.v(x), self.dropout if self.training else 0.0
        joined = attend(q, k, v, self.heads, dropout, self.window)
        return joined if self.proj is None else self.proj(joined)

    def extra_repr(self) -> str:
        """Return what `repr` shows beside the layers."""
        return f"heads={self.heads}, window={self.window}, dropout={self.dropout}"


class ElasticHeads(nn.Module):
    """`Heads` whose widths are prefixes of the largest ones."""

    def __init__(
        self, max_dim: int, *, max_inner: int, max_channels: int, projected: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.q, self.k = ElasticLinear(max_dim, max_inner), ElasticLinear(max_dim, max_inner)
        self.v = ElasticLinear(max_dim, max_inner if projected else max_channels)
        self.proj = ElasticLinear(max_inner, max_channels) if projected else None

    def forward(self, x: Tensor, *, heads: int, inner: int, out_dim: int, window: int | None = None) -> Tensor:
        """Map (B, N, dim) to (B, N, out_dim) with the slice for some heads; the width it reads follows x."""
        dropout = self.dropout if self.training else 0.0
        q, k, v = self.q(x, inner), self.k(x, inner), self.v(x, out_dim if self.proj is None else inner)
        joined = attend(q, k, v, heads, dropout, window)
        return joined if self.proj is None else self.proj(joined, out_dim)

    def extract(self, dim: int, *, heads: int, inner: int, out_dim: int, window: int | None = None) -> Heads:
        """Return the plain heads with copies of the slices."""
        projected = self.proj is not None
        with torch.device("meta"):
            plain = Heads(
                dim,
                heads,
                inner=inner,
                channels=out_dim,
                projected=projected,
                window=window,
                dropout=self.dropout,
            )
        plain.q, plain.k = self.q.extract(inner, dim), self.k.extract(inner, dim)
        plain.v = self.v.extract(inner if projected else out_dim, dim)
        plain.proj = None if self.proj is None else self.proj.extract(out_dim, inner)
        return plain.train(self.training)
