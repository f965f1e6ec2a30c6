"""How AutoFormer's networks share weights: each is a slice of the largest one (weight entanglement)."""

from functools import partial
from typing import Literal

from nasx import Space
from nasx.nn import Supernet, prefix, stacked

from .model import AutoFormer, AutoFormerConfig

QkvBias = Literal["thirds", "packed"]


def supernet(
    space: Space, vit: AutoFormerConfig, *, qkv_bias: QkvBias = "thirds", drop_path: float = 0.0, init_std: float = 0.02
) -> Supernet:
    """Return the supernet of a space: prefixes of blocks, widths, heads and hidden neurons (paper, section 3.2).

    Queries, keys and values are prefixes of their own thirds of the packed weight, and so are their biases with
    `qkv_bias="thirds"`. With "packed" the biases of H heads are the first 3HD of the packed vector, one third after the
    other, which the published supernets were trained with. Drop path's rates grow over the largest depth and stay with
    their blocks.
    """
    if qkv_bias not in ("thirds", "packed"):
        raise ValueError(f'qkv_bias must be "thirds" or "packed", but got {qkv_bias!r}')
    deepest = len(space.parts("block"))
    make = partial(AutoFormer, vit, drop_path=drop_path, rates_over=deepest, init_std=init_std)
    bias = stacked(3) if qkv_bias == "thirds" else prefix
    return Supernet(make, space, layout={"*.attn.qkv.weight": stacked(3), "*.attn.qkv.bias": bias})
