"""Relative positions against their definition: one vector for every pair of tokens."""

from itertools import product

import pytest
import torch
from torch import Tensor

from recipes.autoformer.layers import RelativePositions


def _vectors(vertical: Tensor, horizontal: Tensor, grid: tuple[int, int], max_offset: int) -> Tensor:
    """The (N, N, D) vectors of all pairs, pair by pair."""
    rows, columns = grid
    tokens = [None, *product(range(rows), range(columns))]

    def pair(query: tuple[int, int] | None, key: tuple[int, int] | None) -> Tensor:
        if query is None or key is None:
            return vertical[0] + horizontal[0]
        y, x = (max(-max_offset, min(max_offset, key[axis] - query[axis])) for axis in (0, 1))
        return vertical[max_offset + 1 + y] + horizontal[max_offset + 1 + x]

    return torch.stack([torch.stack([pair(query, key) for key in tokens]) for query in tokens])


def _by_definition(
    positions: RelativePositions, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], max_offset: int
) -> Tensor:
    keys = _vectors(positions.key_vertical, positions.key_horizontal, grid, max_offset)
    values = _vectors(positions.value_vertical, positions.value_horizontal, grid, max_offset)
    logits = torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,ijd->bhij", q, keys)
    attention = (logits / q.shape[-1] ** 0.5).softmax(dim=-1)
    return attention @ v + torch.einsum("bhij,ijd->bhid", attention, values)


@pytest.mark.parametrize(("grid", "max_offset"), [((4, 4), 14), ((3, 5), 2), ((5, 2), 1), ((1, 3), 0), ((1, 1), 14)])
@pytest.mark.parametrize("without", [None, "key", "value"])
def test_outputs_and_gradients_equal_the_definition(
    grid: tuple[int, int], max_offset: int, without: str | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    positions = RelativePositions(grid, 6, max_offset=max_offset).double()
    with torch.no_grad():
        for name, table in positions.named_parameters():
            if without is None or not name.startswith(without):
                table.normal_(generator=generator)
    tokens = 1 + grid[0] * grid[1]
    q, k, v = torch.randn(3, 2, 3, tokens, 6, dtype=torch.float64, generator=generator).requires_grad_().unbind()
    outputs = positions(q, k, v), _by_definition(positions, q, k, v, grid, max_offset)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    weights = torch.randn(outputs[0].shape, dtype=torch.float64, generator=generator)
    leaves = [q, k, v, *positions.parameters()]
    gradients = [torch.autograd.grad((out * weights).sum(), leaves, retain_graph=True) for out in outputs]
    for name, found, wanted in zip(("q", "k", "v", *dict(positions.named_parameters())), *gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11, msg=f"the gradients of {name} differ")


def test_the_published_grid_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    positions = RelativePositions((14, 14), 64)
    with torch.no_grad():
        for table in positions.parameters():
            table.normal_(std=0.5, generator=generator)
        q, k, v = torch.randn(3, 1, 2, 197, 64, generator=generator)
        torch.testing.assert_close(
            positions(q, k, v), _by_definition(positions, q, k, v, (14, 14), 14), rtol=1e-4, atol=1e-4
        )


def test_negative_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="max_offset must be 0 or more, but got -1"):
        RelativePositions((2, 2), 4, max_offset=-1)
