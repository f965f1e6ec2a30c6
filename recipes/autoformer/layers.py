"""The parts of AutoFormer's network.

Shapes: tokens are (B, N, C), batch, tokens (class token first), channels; queries, keys and values (B, H, N, D), heads
and their width; patches lie row by row on a grid of R rows and C columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _table_rows(places: Tensor, length: int, max_offset: int) -> Tensor:
    """Return the rows (1 + P, 1 + length) of a table that pairs of a query and a key look up.

    Queries are the class token and patches at `places` (P,) along one side of the grid, keys the class token and one
    patch for each place there.
    """
    offset = torch.arange(length) - places[:, None]
    return F.pad(max_offset + 1 + offset.clamp(-max_offset, max_offset), (1, 0, 1, 0))


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

    The vertical term of a query depends on no more than the key's row, the horizontal one on its column. So each query
    is multiplied with the R + 1 and C + 1 vectors that it meets before anything is laid out over N keys, and attention
    is summed by row and by column before it meets those of the values. Laying out and summing are products with
    one-hot places; appended to keys and values, they run inside torch's fused attention, which sees heads of
    `attended_width`.
    """

    rows: Tensor
    places: Tensor

    def __init__(self, grid: tuple[int, int], head_dim: int, *, max_offset: int = 14) -> None:
        super().__init__()
        if max_offset < 0:
            raise ValueError(f"max_offset must be 0 or more, but got {max_offset}")
        self.scale, length = head_dim**-0.5, 2 * max_offset + 2
        self.key_vertical = nn.Parameter(torch.zeros(length, head_dim))
        self.key_horizontal = nn.Parameter(torch.zeros(length, head_dim))
        self.value_vertical = nn.Parameter(torch.zeros(length, head_dim))
        self.value_horizontal = nn.Parameter(torch.zeros(length, head_dim))
        rows, columns = grid
        patch = torch.arange(rows * columns)
        row, column = patch // columns, patch % columns
        places = torch.cat([_one_hot_places(row, rows), _one_hot_places(column, columns)], 1)
        vertical, horizontal = _table_rows(row, rows, max_offset), _table_rows(column, columns, max_offset)
        met = torch.cat([vertical, length + horizontal], 1)  # rows of the two tables, one after the other, and a zero
        padding = 0, attended_width(grid, head_dim) - head_dim - places.shape[1]
        self.register_buffer("rows", F.pad(met, padding, value=2 * length), persistent=False)
        self.register_buffer("places", F.pad(places, padding).to(self.key_vertical.dtype), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of queries to keys over values, all (B, H, 1 + RC, D)."""
        terms = torch.einsum("bhnd,nkd->bhnk", q, self._vectors(self.key_vertical, self.key_horizontal))
        places = self.places.to(q.dtype).expand(*q.shape[:2], -1, -1)
        wide_q, wide_k, wide_v = (torch.cat(pair, -1) for pair in ((q, terms), (k, places), (v, places)))
        wide = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=self.scale)
        out, sums = torch.split(wide, [q.shape[-1], places.shape[-1]], dim=-1)
        return out + torch.einsum("bhnk,nkd->bhnd", sums, self._vectors(self.value_vertical, self.value_horizontal))

    def _vectors(self, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """Return the vectors (N, W, D) of two tables that each query meets: by the key's row, then by its column."""
        return F.embedding(self.rows, torch.cat([vertical, horizontal, vertical.new_zeros(1, vertical.shape[1])]))


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
        q, k, v = torch.unflatten(self.qkv(x), -1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v) if self.positions is None else self.positions(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


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
        patches = self.proj(images).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
