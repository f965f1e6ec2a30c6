"""The parts of AutoFormer's network, plain and weight-entangled.

Shapes: tokens are (B, N, C), batch, tokens (class token first), channels; queries, keys and values (B, H, N, D), heads
and their width; patches lie row by row on a grid of R rows and C columns.
"""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.nn import ElasticLinear

QkvBias = Literal["thirds", "packed"]


def _table_rows(length: int, max_offset: int) -> Tensor:
    """Return the rows of a table that a query at each place (length,) meets at (the class token, key places...)."""
    place = torch.arange(length)
    offset = place - place[:, None]
    return F.pad(max_offset + 1 + offset.clamp(-max_offset, max_offset), (1, 0))


def _one_hot_places(places: Tensor, length: int) -> Tensor:
    """Return one-hot rows: the class token's place comes first, then those of the patches."""
    return F.one_hot(F.pad(places + 1, (1, 0)), length + 1)


def attended_width(grid: tuple[int, int], head_dim: int) -> int:
    """Return the width of heads with their places: a row and a column each, and the class token in both; rounded up.

    Fused attention needs multiples of 8 on GPUs and is faster with them on CPUs.
    """
    return -(-(head_dim + sum(grid) + 2) // 8) * 8


TABLES = ("key_vertical", "key_horizontal", "value_vertical", "value_horizontal")
"""The names of the tables of relative positions."""


class RelativePositions(nn.Module):
    """Attention in which what a key is and gives also depends on where it lies from the query.

    A key at a vertical offset y and a horizontal offset x from the query is moved by key_vertical[y] +
    key_horizontal[x], its value likewise. A table's first row is for pairs with the class token, the others for
    offsets from -max_offset to max_offset, beyond which they stay the same.

    The vertical term of a query depends on no more than the key's row, the horizontal one on its column. So queries
    are multiplied with the tables (R + 1 and C + 1 vectors each) before anything is laid out over N keys, and
    attention is summed by row and by column before it meets the tables of the values. Laying out and summing are
    products with one-hot places; appended to keys and values, they run inside torch's fused attention, which sees
    heads of `attended_width`.
    """

    vertical: Tensor
    horizontal: Tensor
    places: Tensor

    def __init__(self, grid: tuple[int, int], head_dim: int, *, max_offset: int = 14) -> None:
        super().__init__()
        if max_offset < 0:
            raise ValueError(f"max_offset must be 0 or more, but got {max_offset}")
        self.grid, self.scale = grid, head_dim**-0.5
        rows, columns = grid
        self.key_vertical = nn.Parameter(torch.zeros(2 * max_offset + 2, head_dim))
        self.key_horizontal = nn.Parameter(torch.zeros(2 * max_offset + 2, head_dim))
        self.value_vertical = nn.Parameter(torch.zeros(2 * max_offset + 2, head_dim))
        self.value_horizontal = nn.Parameter(torch.zeros(2 * max_offset + 2, head_dim))
        patch = torch.arange(rows * columns)
        places = torch.cat([_one_hot_places(patch // columns, rows), _one_hot_places(patch % columns, columns)], 1)
        padding = attended_width(grid, head_dim) - head_dim - places.shape[1]
        self.register_buffer("vertical", _table_rows(rows, max_offset), persistent=False)
        self.register_buffer("horizontal", _table_rows(columns, max_offset), persistent=False)
        self.register_buffer("places", F.pad(places, (0, padding)).to(self.key_vertical.dtype), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of queries to keys over values, all (B, H, 1 + RC, D)."""
        places = self.places.to(q.dtype).expand(*q.shape[:2], -1, -1)
        wide_q, wide_k, wide_v = (torch.cat(pair, -1) for pair in ((q, self._terms(q)), (k, places), (v, places)))
        wide = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=self.scale)
        out, sums = torch.split(wide, [q.shape[-1], places.shape[-1]], dim=-1)
        return out + self._moved(sums)

    def _terms(self, q: Tensor) -> Tensor:
        """Return the products of queries with the vectors that they meet by key's row, then by key's column."""
        q = self._on_grid(q)
        by_row = torch.einsum("bhrcd,rkd->bhrck", q, self.key_vertical[self.vertical])
        by_column = torch.einsum("bhrcd,ckd->bhrck", q, self.key_horizontal[self.horizontal])
        terms = torch.cat([by_row, by_column], -1).flatten(2, 3)
        # the class token meets one vector at all keys: a constant, which softmax takes out
        return F.pad(terms, (0, self.places.shape[1] - terms.shape[-1], 1, 0))

    def _moved(self, sums: Tensor) -> Tensor:
        """Return what offsets add to the outputs (B, H, N, D), given attention summed by key's row and by column."""
        rows, columns = (places + 1 for places in self.grid)
        padding = self.places.shape[1] - rows - columns
        by_row, by_column, _ = torch.split(self._on_grid(sums), [rows, columns, padding], dim=-1)
        patches = torch.einsum("bhrck,rkd->bhrcd", by_row, self.value_vertical[self.vertical])
        patches = patches + torch.einsum("bhrck,ckd->bhrcd", by_column, self.value_horizontal[self.horizontal])
        # the class token's attention, which sums to 1, meets one vector at all keys
        class_token = (self.value_vertical[0] + self.value_horizontal[0]).to(patches.dtype)
        return torch.cat([class_token.expand(*patches.shape[:2], 1, -1), patches.flatten(2, 3)], dim=2)

    def _on_grid(self, x: Tensor) -> Tensor:
        """Return the patches (B, H, R, C, ...) of tokens. Split, unlike a slice, has a cheap gradient."""
        _, patches = torch.split(x, [1, x.shape[2] - 1], dim=2)
        return torch.unflatten(patches, 2, self.grid)


def attend(qkv: Tensor, head_dim: int, positions: RelativePositions | None) -> Tensor:
    """Return the attention of packed q, k and v (B, N, 3HD), heads joined again: (B, N, HD)."""
    q, k, v = torch.unflatten(qkv, -1, (3, -1, head_dim)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v) if positions is None else positions(q, k, v)
    return out.transpose(1, 2).flatten(2)


class RelativeAttention(nn.Module):
    """Multi-head self-attention of any number of heads of one width, with relative positions or without."""

    def __init__(self, dim: int, heads: int, *, head_dim: int, positions: RelativePositions | None) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)
        self.positions = positions

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        return self.proj(attend(self.qkv(x), self.head_dim, self.positions))


class ElasticRelativeAttention(nn.Module):
    """The same with width and heads as slices of the largest ones; all heads and widths share the position tables.

    q, k and v are prefixes of their own thirds of the packed weight. So are their biases with `qkv_bias="thirds"`;
    with "packed" the biases of H heads are the first 3HD of the packed vector, one third after the other, which the
    published supernets were trained with.
    """

    def __init__(
        self,
        max_dim: int,
        max_heads: int,
        *,
        head_dim: int,
        positions: RelativePositions | None,
        qkv_bias: QkvBias = "thirds",
    ) -> None:
        super().__init__()
        self.head_dim, self.max_heads, self.qkv_bias = head_dim, max_heads, qkv_bias
        self.qkv = nn.Linear(max_dim, 3 * max_heads * head_dim)
        self.proj = ElasticLinear(max_heads * head_dim, max_dim)
        self.positions = positions

    def _slice(self, dim: int, heads: int) -> tuple[Tensor, Tensor]:
        if not 0 < heads <= self.max_heads or not 0 < dim <= self.qkv.in_features:
            raise ValueError(
                f"attention can have 1 to {self.max_heads} heads and width 1 to {self.qkv.in_features}, "
                f"but got {heads} heads and width {dim}; build the supernet at the largest size of all"
            )
        inner = heads * self.head_dim
        weight = torch.unflatten(self.qkv.weight, 0, (3, -1))[:, :inner, :dim].flatten(0, 1)
        if self.qkv_bias == "packed":
            return weight, self.qkv.bias[: 3 * inner]
        return weight, torch.unflatten(self.qkv.bias, 0, (3, -1))[:, :inner].flatten()

    def forward(self, x: Tensor, *, heads: int) -> Tensor:
        """Map (B, N, C) to (B, N, C) with some heads."""
        dim = x.shape[-1]
        qkv = F.linear(x, *self._slice(dim, heads))
        return self.proj(attend(qkv, self.head_dim, self.positions), dim)

    def extract(self, dim: int, *, heads: int) -> RelativeAttention:
        """Return the plain attention of a size."""
        positions = copy.deepcopy(self.positions)
        with torch.device("meta"):
            plain = RelativeAttention(dim, heads, head_dim=self.head_dim, positions=positions)
        weight, bias = self._slice(dim, heads)
        plain.qkv.weight, plain.qkv.bias = own(weight, self.qkv.weight), own(bias, self.qkv.bias)
        plain.proj = self.proj.extract(dim, heads * self.head_dim)
        return plain


def _tokens(images: Tensor, weight: Tensor, bias: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
    patches = F.conv2d(images, weight, bias, stride=weight.shape[-2:]).flatten(2).transpose(1, 2)
    return torch.cat([cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + pos_embed


class Embedding(nn.Module):
    """Images (B, channels, H, W) to tokens (B, N, C): class token, then one token per patch; plus their positions.

    `tokens` is N.
    """

    def __init__(self, dim: int, *, tokens: int, in_channels: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens of images."""
        assert self.proj.bias is not None
        return _tokens(images, self.proj.weight, self.proj.bias, self.cls_token, self.pos_embed)


class ElasticEmbedding(nn.Module):
    """The same with the width as a prefix."""

    def __init__(self, max_dim: int, *, tokens: int, in_channels: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, max_dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, max_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, max_dim))

    def _slices(self, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not 0 < dim <= self.proj.out_channels:
            raise ValueError(
                f"embed_dim must be from 1 to {self.proj.out_channels}, but got {dim}; "
                "build the supernet at the largest size of all"
            )
        assert self.proj.bias is not None
        return self.proj.weight[:dim], self.proj.bias[:dim], self.cls_token[..., :dim], self.pos_embed[..., :dim]

    def forward(self, images: Tensor, dim: int) -> Tensor:
        """Return the tokens of images at a width."""
        return _tokens(images, *self._slices(dim))

    def extract(self, dim: int) -> Embedding:
        """Return the plain embedding of a width."""
        weight, bias, cls_token, pos_embed = self._slices(dim)
        with torch.device("meta"):
            plain = Embedding(
                dim,
                tokens=pos_embed.shape[1],
                in_channels=self.proj.in_channels,
                patch_size=self.proj.kernel_size[0],
            )
        plain.proj.weight, plain.proj.bias = own(weight, self.proj.weight), own(bias, self.proj.bias)
        plain.cls_token, plain.pos_embed = own(cls_token, self.cls_token), own(pos_embed, self.pos_embed)
        return plain


def own(part: Tensor, whole: Tensor | None) -> nn.Parameter:
    """Return a copy of a parameter's slice as a parameter, trained where the whole is."""
    assert whole is not None
    copied = part.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copied, requires_grad=whole.requires_grad)
