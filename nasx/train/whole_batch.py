"""Computing on some rows of a batch what the whole batch would give: BatchNorm statistics and random masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from nasx.train.batchnorm_groups import backward_inside, grouped_batch_norm


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a batch that a process holds: from `first` on `count` of `whole`."""

    first: int
    count: int
    whole: int


class WholeBatch(TorchFunctionMode):
    """While entered, what networks compute over a batch is that of the batch of which each rank holds some rows.

    BatchNorm, as a layer of any kind, has the statistics of all ranks' rows. Dropout, the dropout of
    `scaled_dot_product_attention` and stochastic depth (`Tensor.bernoulli_`) draw for the whole batch and keep the
    own rows, so that with the same seed a sample meets the same masks on every rank and in one process.
    Their first dimension must be the samples', or samples times tokens; a tensor whose first dimension is no multiple
    of the rows gets the same draw on every rank. Draws follow the order in memory, which in a rank's part must be that
    of the whole: it can be another one where a rank holds a single row of tokens that were transposed and flattened.
    The dropout of recurrent layers, of `nn.MultiheadAttention` and of `F.alpha_dropout` is refused as ValueError. What
    draws by other functions, such as `torch.rand`, draws the same on every rank. With `batch_norm_group`, BatchNorm has
    the statistics of groups of so many samples, none of which spans ranks (`nasx.train.BatchNormGroups`).
    """

    def __init__(self, rows: Rows, batch_norm_group: int | None = None) -> None:
        super().__init__()
        self.rows, self.batch_norm_group = rows, batch_norm_group

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Replace what depends on the batch; everything else is unchanged."""
        replace = self._REPLACED.get(func)
        return func(*args, **(kwargs or {})) if replace is None else replace(self, func, *args, **(kwargs or {}))

    def _batch_norm(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if self.batch_norm_group is None:
            return sync_batch_norm(*args, **kwargs)
        return grouped_batch_norm(self.rows.count, self.batch_norm_group, *args, over_ranks=True, **kwargs)

    def _dropout(
        self, func: Callable[..., Tensor], x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0 or x.shape[0] % self.rows.count:
            return func(x, p, training, inplace)
        mask = self._drawn(x, lambda whole: func(whole.fill_(1), p, True))
        return x.mul_(mask) if inplace else x * mask

    def _torch_dropout(self, func: Callable[..., Tensor], input: Tensor, p: float, train: bool) -> Tensor:
        return self._dropout(F.dropout, input, p, train)

    def _bernoulli_(self, func: Callable[..., Tensor], x: Tensor, p: Any = 0.5, **kwargs: Any) -> Tensor:
        if isinstance(p, Tensor) or not x.ndim or x.shape[0] % self.rows.count:
            return func(x, p, **kwargs)
        return x.copy_(self._drawn(x, lambda whole: func(whole, p, **kwargs)))

    def _attention(
        self,
        func: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p == 0:
            return func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if attn_mask is not None or is_causal or enable_gqa:
            raise ValueError("attention dropout over several ranks knows no masks and no grouped queries; set it to 0")
        root = (query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5  # both factors scaled, as torch does
        weights = ((query * root) @ (key * root).transpose(-2, -1)).softmax(dim=-1)
        return self._dropout(F.dropout, weights, dropout_p) @ value

    def _refused(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = signature(func).bind(*args, **kwargs)
        given.apply_defaults()
        if given.arguments["training"] and given.arguments.get("p", given.arguments.get("dropout_p")):
            raise ValueError(
                f"the masks of {func.__name__} cannot be drawn for a batch that several ranks share; "
                "use dropout, drop_path or nasx.nn.Attention, or a rate of 0"
            )
        return func(*args, **kwargs)

    def _recurrent(self, func: Callable[..., Any], *args: Any) -> Any:
        bias = next(place for place, value in enumerate(args) if isinstance(value, bool))  # packed inputs take one more
        dropout, training = args[bias + 2 : bias + 4]
        if training and dropout:
            raise ValueError(
                "the dropout of recurrent layers cannot be drawn for a batch that several ranks share; set it to 0 and "
                "put nn.Dropout between layers"
            )
        return func(*args)

    def _backward(self, func: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        backward_inside(self, *args, **kwargs)

    def _drawn(self, like: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the own rows of what is drawn for the whole batch, in the order that the memory has there."""
        first, count, whole = self.rows.first, self.rows.count, self.rows.whole
        each = like.shape[0] // count
        order, strides = list(range(like.ndim)), like.stride()
        if not like.is_contiguous():
            order.sort(key=lambda dim: -strides[dim])
        shape = [whole * each, *like.shape[1:]]
        empty = torch.empty([shape[dim] for dim in order], dtype=like.dtype, device=like.device)
        drawn = draw(empty.permute([order.index(dim) for dim in range(like.ndim)]))
        return drawn[first * each : (first + count) * each]

    _REPLACED: ClassVar[dict[Any, Callable[..., Any]]] = {
        F.batch_norm: _batch_norm,
        F.dropout: _dropout,
        F.dropout1d: _dropout,
        F.dropout2d: _dropout,
        F.dropout3d: _dropout,
        torch.dropout: _torch_dropout,
        Tensor.bernoulli_: _bernoulli_,
        F.scaled_dot_product_attention: _attention,
        F.alpha_dropout: _refused,
        F.feature_alpha_dropout: _refused,
        F.multi_head_attention_forward: _refused,
        Tensor.backward: _backward,
        torch.lstm: _recurrent,
        torch.gru: _recurrent,
        torch.rnn_tanh: _recurrent,
        torch.rnn_relu: _recurrent,
    }


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute `F.batch_norm` of (B, C, ...) with the statistics of all ranks' rows, however many each rank holds.

    `input`, `running_mean`, `running_var`, `weight`, `bias`, `training`, `momentum` and `eps` are those of
    `F.batch_norm`. As in torch, the biased variance normalises and the unbiased one goes into the running statistics,
    which come out the same to the bit on all ranks. All ranks of the default process group must call it alike; its
    gradients are those of the sum of the ranks' losses. It runs on every device that the process group serves.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    with torch.no_grad():
        mean, var, count = _statistics(input)
        if running_mean is not None:
            running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
        if running_var is not None:
            unbiased = var * (count / (count - 1))
            running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)
    return _Normalise.apply(input, weight, bias, mean, var, count, eps)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance per channel over all ranks, and the number of values that they are of."""
    channels = x.shape[1]
    wide = x if x.dtype == torch.float64 else x.float()
    var, mean = torch.var_mean(wide, dim=_all_but_channels(x), correction=0)
    own = torch.cat([mean, var, mean.new_full((1,), x.numel() // channels)])
    of_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(of_ranks, own)
    means, variances, counts = torch.split(torch.stack(of_ranks), [channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (means * counts).sum(dim=0) / count
    var = ((variances + (means - mean).square()) * counts).sum(dim=0) / count
    return mean, var, count


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std, count = ctx.saved_tensors
        dims, per_channel = _all_but_channels(x), (-1, *(1,) * (x.ndim - 2))
        wide = gradient.to(mean.dtype)
        normalised = (x - mean.view(per_channel)).mul_(inverse_std.view(per_channel))
        own = torch.stack([wide.sum(dim=dims), (wide * normalised).sum(dim=dims)])
        grad_bias, grad_weight = own
        grad_x = None
        if ctx.needs_input_grad[0]:
            whole = own.clone()
            dist.all_reduce(whole)
            whole /= count
            scale = inverse_std if weight is None else inverse_std * weight
            grad_x = wide - whole[0].view(per_channel) - normalised.mul_(whole[1].view(per_channel))
            grad_x = grad_x.mul_(scale.view(per_channel)).to(x.dtype)
        return (
            grad_x,
            grad_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            grad_bias.to(weight.dtype) if ctx.needs_input_grad[2] else None,
            *(None,) * 4,
        )
