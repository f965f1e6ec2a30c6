"""The parts of AutoFormer's network.

Shapes: tokens are (B, N, C), batch, tokens (class token first), channels; queries, keys and values (B, H, N, D), heads
and their width; patches lie row by row on a grid of R rows and C columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
