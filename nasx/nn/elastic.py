"""Weight-entangled layers: built at their largest size, run and extracted at any smaller one (AutoFormer).

Channels are prefixes; depthwise kernels are centred in the largest kernel. Every layer runs a slice in `forward`,
which takes the sizes as arguments, and gives that slice as plain torch in `extract`. `of` goes the other way: a
plain layer made elastic, its size the largest. The parameters stay the plain layer's own, so training one trains both.
"""

import copy
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.nn.layers import Attention, FeedForward, attend, depthwise_conv1d

Plain = TypeVar("Plain", bound=nn.Module)
Size = int | tuple[int, int]


def _filled(plain: Plain, like: nn.Module, **tensors: Tensor | None) -> Plain:
    """Give a plain layer copies of slices of an elastic layer's parameters and buffers, and its mode.

    Whether a copy is trained is asked of the whole parameter: slices taken under `no_grad` have forgotten it.
    """
    with torch.inference_mode(False), torch.no_grad():
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            whole, own = getattr(like, name), tensor.detach().clone(memory_format=torch.contiguous_format)
            if isinstance(whole, nn.Parameter):
                own = nn.Parameter(own, requires_grad=whole.requires_grad)
            setattr(plain, name, own)
    return plain.train(like.training)


def _adopted(elastic: Plain, plain: nn.Module) -> Plain:
    """Give an elastic layer the parameters and buffers of a plain one, not copies, and its mode."""
    own, given = ([*layer.named_parameters(), *layer.named_buffers()] for layer in (elastic, plain))
    names, found = (sorted(name for name, _ in tensors) for tensors in (own, given))
    if names != found:
        raise ValueError(
            f"{type(elastic).__name__} holds {', '.join(names)}, but this {type(plain).__name__} holds "
            f"{', '.join(found)}; pass a layer that computes what {type(elastic).__mro__[1].__name__} does"
        )
    for name, tensor in given:
        setattr(elastic, name, tensor)
    return elastic.train(plain.training)


def _fits(wanted: int, largest: int, what: str) -> int:
    if not 0 < wanted <= largest:
        raise ValueError(
            f"{what} must be from 1 to {largest}, but got {wanted}; build the elastic layer at the largest size of all"
        )
    return wanted


def _prefix(tensor: Tensor | None, size: int) -> Tensor | None:
    return None if tensor is None else tensor[:size]


class ElasticLinear(nn.Linear):
    """A Linear layer whose inputs and outputs are prefixes."""

    @classmethod
    def of(cls, plain: nn.Linear) -> Self:
        """Return a plain layer made elastic."""
        return _adopted(cls(plain.in_features, plain.out_features, plain.bias is not None, device="meta"), plain)

    def _slice(self, out_features: int, in_features: int) -> tuple[Tensor, Tensor | None]:
        _fits(out_features, self.out_features, "out_features")
        _fits(in_features, self.in_features, "in_features")
        return self.weight[:out_features, :in_features], _prefix(self.bias, out_features)

    def forward(self, x: Tensor, out_features: int | None = None) -> Tensor:
        """Map (..., in) to (..., out_features), all by default; the inputs that are used follow x."""
        out_features = self.out_features if out_features is None else out_features
        return F.linear(x, *self._slice(out_features, x.shape[-1]))

    def extract(self, out_features: int, in_features: int) -> nn.Linear:
        """Return the plain layer of a size."""
        weight, bias = self._slice(out_features, in_features)
        return _filled(
            nn.Linear(in_features, out_features, bias=bias is not None, device="meta"), self, weight=weight, bias=bias
        )


class ElasticLayerNorm(nn.LayerNorm):
    """A LayerNorm over the last dimension whose channels are a prefix."""

    def __init__(self, dim: int, eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True) -> None:
        super().__init__(dim, eps, elementwise_affine, bias)

    @classmethod
    def of(cls, plain: nn.LayerNorm) -> Self:
        """Return a plain layer made elastic; it must normalise the last dimension alone."""
        if len(plain.normalized_shape) != 1:
            raise ValueError(f"an elastic LayerNorm is over one dimension, but got {tuple(plain.normalized_shape)}")
        affine, bias = plain.weight is not None, plain.bias is not None
        with torch.device("meta"):
            return _adopted(cls(plain.normalized_shape[0], plain.eps, affine, bias), plain)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., C) with the first C weights."""
        dim = _fits(x.shape[-1], self.normalized_shape[0], "channels")
        return F.layer_norm(x, (dim,), _prefix(self.weight, dim), _prefix(self.bias, dim), self.eps)

    def extract(self, dim: int) -> nn.LayerNorm:
        """Return the plain layer of a size."""
        _fits(dim, self.normalized_shape[0], "channels")
        plain = nn.LayerNorm(dim, self.eps, self.elementwise_affine, self.bias is not None, device="meta")
        return _filled(plain, self, weight=_prefix(self.weight, dim), bias=_prefix(self.bias, dim))


class ElasticConv2d(nn.Conv2d):
    """A convolution over images whose input and output channels are prefixes, its kernel one for all sizes.

    A patch embedding, for one. It has no groups; `ElasticDepthwiseConv2d` has kernels that vary.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size, **settings: Any) -> None:
        """`settings` are those of `nn.Conv2d`: stride, padding, dilation, bias, padding_mode."""
        super().__init__(in_channels, out_channels, kernel_size, **settings)
        if self.groups != 1:
            raise ValueError(f"an elastic convolution has one group, but got {self.groups}")

    @classmethod
    def of(cls, plain: nn.Conv2d) -> Self:
        """Return a plain layer made elastic."""
        with torch.device("meta"):
            elastic = cls(plain.in_channels, plain.out_channels, **_settings(plain), groups=plain.groups)
        return _adopted(elastic, plain)

    def _slice(self, out_channels: int, in_channels: int) -> tuple[Tensor, Tensor | None]:
        _fits(out_channels, self.out_channels, "out_channels")
        _fits(in_channels, self.in_channels, "in_channels")
        return self.weight[:out_channels, :in_channels], _prefix(self.bias, out_channels)

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H', W'), all by default; the inputs that are used follow x."""
        out_channels = self.out_channels if out_channels is None else out_channels
        return self._conv_forward(x, *self._slice(out_channels, x.shape[1]))

    def extract(self, out_channels: int, in_channels: int) -> nn.Conv2d:
        """Return the plain layer of a size."""
        weight, bias = self._slice(out_channels, in_channels)
        plain = nn.Conv2d(in_channels, out_channels, **_settings(self), device="meta")
        return _filled(plain, self, weight=weight, bias=bias)


def _settings(conv: nn.Conv2d) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {**{name: getattr(conv, name) for name in names}, "bias": conv.bias is not None}


def _centred(kernel_size: int, largest: int) -> slice:
    if kernel_size % 2 == 0:
        raise ValueError(
            f"kernel sizes must be odd, so that they have a centre, but got {kernel_size}; take {kernel_size + 1}"
        )
    _fits(kernel_size, largest, "kernel_size")
    start = (largest - kernel_size) // 2
    return slice(start, start + kernel_size)


def _depthwise(conv: nn.Conv1d | nn.Conv2d) -> int:
    """Return the channels of a convolution that is depthwise, with zeros around it that keep its input's size."""
    sizes = {*conv.kernel_size}
    same = conv.padding == "same" or {*conv.padding} == {size // 2 for size in sizes}
    plain = {*conv.stride, *conv.dilation} == {1} and conv.padding_mode == "zeros"
    if not (conv.groups == conv.in_channels == conv.out_channels and len(sizes) == 1 and same and plain):
        raise ValueError(
            "an elastic depthwise convolution has a group per channel, a square kernel, stride and dilation 1, "
            f"and zero padding to the input's size, but got {conv}"
        )
    return conv.in_channels


class ElasticDepthwiseConv1d(nn.Conv1d):
    """A depthwise convolution with 'same' padding: channels are a prefix, kernels centred in the largest."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = True) -> None:
        _centred(kernel_size, kernel_size)
        super().__init__(channels, channels, kernel_size, padding="same", groups=channels, bias=bias)

    @classmethod
    def of(cls, plain: nn.Conv1d) -> Self:
        """Return a plain layer made elastic; it must be depthwise, keep the length, and have an odd kernel."""
        with torch.device("meta"):
            return _adopted(cls(_depthwise(plain), plain.kernel_size[0], plain.bias is not None), plain)

    def _slice(self, channels: int, kernel_size: int) -> tuple[Tensor, Tensor | None]:
        _fits(channels, self.in_channels, "channels")
        centre = _centred(kernel_size, self.kernel_size[0])
        return self.weight[:channels, :, centre], _prefix(self.bias, channels)

    def forward(self, x: Tensor, kernel_size: int | None = None) -> Tensor:
        """Map (B, C, N) to itself with a kernel size, the largest by default."""
        kernel_size = self.kernel_size[0] if kernel_size is None else kernel_size
        return depthwise_conv1d(x, *self._slice(x.shape[1], kernel_size))

    def extract(self, channels: int, kernel_size: int) -> nn.Conv1d:
        """Return the plain layer of a size."""
        weight, bias = self._slice(channels, kernel_size)
        plain = nn.Conv1d(
            channels, channels, kernel_size, padding="same", groups=channels, bias=bias is not None, device="meta"
        )
        return _filled(plain, self, weight=weight, bias=bias)


class ElasticDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution over images, square kernels centred in the largest."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = True) -> None:
        _centred(kernel_size, kernel_size)
        super().__init__(channels, channels, kernel_size, padding="same", groups=channels, bias=bias)

    @classmethod
    def of(cls, plain: nn.Conv2d) -> Self:
        """Return a plain layer made elastic; it must be depthwise, keep height and width, and have an odd kernel."""
        with torch.device("meta"):
            return _adopted(cls(_depthwise(plain), plain.kernel_size[0], plain.bias is not None), plain)

    def _slice(self, channels: int, kernel_size: int) -> tuple[Tensor, Tensor | None]:
        _fits(channels, self.in_channels, "channels")
        centre = _centred(kernel_size, self.kernel_size[0])
        return self.weight[:channels, :, centre, centre], _prefix(self.bias, channels)

    def forward(self, x: Tensor, kernel_size: int | None = None) -> Tensor:
        """Map (B, C, H, W) to itself with a kernel size, the largest by default."""
        kernel_size = self.kernel_size[0] if kernel_size is None else kernel_size
        return F.conv2d(x, *self._slice(x.shape[1], kernel_size), padding="same", groups=x.shape[1])

    def extract(self, channels: int, kernel_size: int) -> nn.Conv2d:
        """Return the plain layer of a size."""
        weight, bias = self._slice(channels, kernel_size)
        plain = nn.Conv2d(
            channels, channels, kernel_size, padding="same", groups=channels, bias=bias is not None, device="meta"
        )
        return _filled(plain, self, weight=weight, bias=bias)


def _batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise with the first channels' weights and statistics, updating those as torch's own layer does."""
    channels = _fits(x.shape[1], norm.num_features, "channels")
    momentum = norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # a cumulative average
            momentum = 1.0 / float(norm.num_batches_tracked)
    return F.batch_norm(
        x.contiguous(),  # torch.compile foresees another layout than this gives for transposed tokens
        _prefix(norm.running_mean, channels),
        _prefix(norm.running_var, channels),
        _prefix(norm.weight, channels),
        _prefix(norm.bias, channels),
        norm.training or norm.running_mean is None,
        0.0 if momentum is None else momentum,
        norm.eps,
    )


def _norm_settings(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[int, float, float | None, bool, bool]:
    return norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats


def _batch_norm_slice(norm: nn.BatchNorm1d | nn.BatchNorm2d, plain_class: type[Plain], channels: int) -> Plain:
    _fits(channels, norm.num_features, "channels")
    plain = plain_class(channels, *_norm_settings(norm)[1:], device="meta")
    return _filled(
        plain,
        norm,
        weight=_prefix(norm.weight, channels),
        bias=_prefix(norm.bias, channels),
        running_mean=_prefix(norm.running_mean, channels),
        running_var=_prefix(norm.running_var, channels),
        num_batches_tracked=norm.num_batches_tracked,
    )


class ElasticBatchNorm1d(nn.BatchNorm1d):
    """A BatchNorm whose channels are a prefix; statistics of the channels outside a slice stay as they are.

    Slices share their running statistics, which therefore fit none of them exactly: recompute them for the
    architecture at hand before scoring it. The count of batches is one for all channels, so the cumulative average
    of `momentum=None` is exact where one slice runs between resets, as it does there.
    """

    @classmethod
    def of(cls, plain: nn.BatchNorm1d) -> Self:
        """Return a plain layer made elastic."""
        return _adopted(cls(*_norm_settings(plain), device="meta"), plain)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, N) with the first C channels."""
        self._check_input_dim(x)
        return _batch_norm(self, x)

    def extract(self, channels: int) -> nn.BatchNorm1d:
        """Return the plain layer of a size."""
        return _batch_norm_slice(self, nn.BatchNorm1d, channels)


class ElasticBatchNorm2d(nn.BatchNorm2d):
    """The same over images (B, C, H, W)."""

    @classmethod
    def of(cls, plain: nn.BatchNorm2d) -> Self:
        """Return a plain layer made elastic."""
        return _adopted(cls(*_norm_settings(plain), device="meta"), plain)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) with the first C channels."""
        self._check_input_dim(x)
        return _batch_norm(self, x)

    def extract(self, channels: int) -> nn.BatchNorm2d:
        """Return the plain layer of a size."""
        return _batch_norm_slice(self, nn.BatchNorm2d, channels)


class ElasticAttention(nn.Module):
    """Multi-head self-attention whose width, heads, inner and output width vary.

    q, k and v are prefixes of their own third of the packed weight. `max_out` is `max_dim` by default. The scale is
    the heads' width ** -0.5 at every size, unless one is given for all.
    """

    def __init__(
        self,
        max_dim: int,
        *,
        max_inner: int,
        max_out: int | None = None,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.max_inner, self.dropout, self.scale = max_inner, dropout, scale
        self.qkv = nn.Linear(max_dim, 3 * max_inner, bias=qkv_bias)
        self.proj = ElasticLinear(max_inner, max_dim if max_out is None else max_out)

    @classmethod
    def of(cls, qkv: nn.Linear, proj: nn.Linear, *, dropout: float = 0.0, scale: float | None = None) -> Self:
        """Return the two layers of an attention made elastic; `qkv` packs q, k and v along its rows, as timm does."""
        if qkv.out_features != 3 * proj.in_features:
            raise ValueError(
                f"qkv packs q, k and v, each as wide as proj's input, but got {qkv.out_features} rows and "
                f"{proj.in_features} inputs"
            )
        with torch.device("meta"):
            attention = cls(qkv.in_features, max_inner=proj.in_features, dropout=dropout, scale=scale)
        attention.qkv, attention.proj = qkv, ElasticLinear.of(proj)
        return attention.train(qkv.training)

    def _slice(self, dim: int, inner: int) -> tuple[Tensor, Tensor | None]:
        _fits(dim, self.qkv.in_features, "width")
        _fits(inner, self.max_inner, "inner width")
        weight = self.qkv.weight.view(3, self.max_inner, -1)[:, :inner, :dim].flatten(0, 1)
        bias: Tensor | None = self.qkv.bias
        return weight, None if bias is None else bias.view(3, self.max_inner)[:, :inner].flatten()

    def forward(self, x: Tensor, *, heads: int, inner: int | None = None, out_dim: int | None = None) -> Tensor:
        """Map (B, N, C) to (B, N, out_dim) with some heads; `inner` and `out_dim` are C by default."""
        dim = x.shape[-1]
        q, k, v = F.linear(x, *self._slice(dim, dim if inner is None else inner)).chunk(3, dim=-1)
        dropout = self.dropout if self.training else 0.0
        joined = attend(q, k, v, heads, scale=self.scale, dropout=dropout)
        return self.proj(joined, dim if out_dim is None else out_dim)

    def extract(self, dim: int, *, heads: int, inner: int | None = None, out_dim: int | None = None) -> Attention:
        """Return the plain attention of a size."""
        inner = dim if inner is None else inner
        out_dim = dim if out_dim is None else out_dim
        weight, bias = self._slice(dim, inner)
        with torch.device("meta"):
            plain = Attention(
                dim,
                heads,
                inner=inner,
                out_dim=out_dim,
                qkv_bias=bias is not None,
                dropout=self.dropout,
                scale=self.scale,
            )
        _filled(plain.qkv, self.qkv, weight=weight, bias=bias)
        plain.proj = self.proj.extract(out_dim, inner)
        return plain.train(self.training)


class ElasticFeedForward(nn.Module):
    """A feed-forward whose width and hidden width are prefixes; the activation is one for all sizes."""

    def __init__(
        self,
        max_dim: int,
        max_hidden: int,
        *,
        activation: Callable[[], nn.Module] = nn.GELU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.fc1 = ElasticLinear(max_dim, max_hidden)
        self.act = activation()
        self.fc2 = ElasticLinear(max_hidden, max_dim)
        self.drop = nn.Dropout(dropout)

    @classmethod
    def of(cls, fc1: nn.Linear, fc2: nn.Linear, *, activation: nn.Module, dropout: float = 0.0) -> Self:
        """Return the two layers of a feed-forward made elastic, with the activation between them."""
        if (fc1.in_features, fc1.out_features) != (fc2.out_features, fc2.in_features):
            raise ValueError(f"fc2 must map fc1's outputs back to its inputs, but got {fc1} and {fc2}")
        with torch.device("meta"):
            feed_forward = cls(fc1.in_features, fc1.out_features, activation=nn.Identity, dropout=dropout)
        feed_forward.fc1, feed_forward.act, feed_forward.fc2 = ElasticLinear.of(fc1), activation, ElasticLinear.of(fc2)
        return feed_forward.train(fc1.training)

    def forward(self, x: Tensor, *, hidden: int) -> Tensor:
        """Map (..., C) to (..., C) through a hidden width."""
        inside = self.drop(self.act(self.fc1(x, hidden)))
        return self.drop(self.fc2(inside, x.shape[-1]))

    def extract(self, dim: int, *, hidden: int) -> FeedForward:
        """Return the plain feed-forward of a size."""
        with torch.device("meta"):
            plain = FeedForward(dim, hidden, activation=nn.Identity, dropout=self.drop.p)
        plain.fc1, plain.fc2 = self.fc1.extract(hidden, dim), self.fc2.extract(dim, hidden)
        with torch.inference_mode(False):  # else the copy could never be trained
            plain.act = copy.deepcopy(self.act)
        return plain.train(self.training)
