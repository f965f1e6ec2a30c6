"""What an AutoFormer network costs: exact MACs and parameters.

A MAC is one multiply-add of the network as it is run. Counted are the patch embedding, linear layers, the two attention
products, and what relative positions multiply: queries and sums of attention with the tables, and the one-hot places
that widen both attention products; not norms, activations, biases or softmax.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nasx.arch import Value
from nasx.cost import AdditiveCost

from .layers import attended_width
from .model import AutoFormerConfig, hidden_width


@dataclass(frozen=True)
class _AutoFormerCost(AdditiveCost):
    vit: AutoFormerConfig = field(default_factory=AutoFormerConfig)

    def configured(self, **changes: Any) -> "_AutoFormerCost":
        """Return the same cost in another ViT config: `macs.configured(image_size=32, patch_size=4)`."""
        return replace(self, vit=replace(self.vit, **changes))


@dataclass(frozen=True)
class Macs(_AutoFormerCost):
    """Multiply-adds of one image, equal to what torch's flop counter (halved) finds in the extracted network.

    Relative positions are about a tenth of them at the paper's size; a table product for every pair of tokens, as
    their definition reads, would be more.
    """

    unit = "MACs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the MACs of patch embedding and head at the shared width."""
        f = self.vit
        return int(shared["embed_dim"]) * ((f.tokens - 1) * f.in_channels * f.patch_size**2 + f.num_classes)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the MACs of one block at the shared width."""
        f, dim, heads = self.vit, int(shared["embed_dim"]), int(choices["num_heads"])
        linear = f.tokens * dim * (4 * heads * f.head_dim + 2 * hidden_width(dim, choices))
        if not f.relative_positions:
            return linear + heads * 2 * f.tokens**2 * f.head_dim
        attention = 2 * f.tokens**2 * attended_width((f.grid, f.grid), f.head_dim)
        tables = 2 * (f.tokens - 1) * f.head_dim * 2 * (f.grid + 1)  # a row and a column, and the class token in both
        return linear + heads * (attention + tables)


@dataclass(frozen=True)
class Params(_AutoFormerCost):
    """Parameters of the extracted network."""

    unit = "parameters"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the parameters of patch embedding, class token, positions, last norm and head at the shared width."""
        f, dim = self.vit, int(shared["embed_dim"])
        embedding = dim * (f.in_channels * f.patch_size**2 + 1) + dim * (f.tokens + 1)
        return embedding + 2 * dim + (dim + 1) * f.num_classes

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the parameters of one block at the shared width."""
        f, dim = self.vit, int(shared["embed_dim"])
        inner, hidden = int(choices["num_heads"]) * f.head_dim, hidden_width(dim, choices)
        attention = (dim + 1) * 3 * inner + (inner + 1) * dim
        tables = 4 * (2 * f.max_offset + 2) * f.head_dim if f.relative_positions else 0
        return 4 * dim + attention + tables + (dim + 1) * hidden + (hidden + 1) * dim


macs = Macs()
params = Params()
