"""What a LocalViT network costs: exact MACs and parameters.

A MAC is one multiply-add. Counted are convolutions, linear layers and the two attention products; not norms,
activations, biases, pooling or softmax.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from nasx.arch import Value
from nasx.cost import AdditiveCost

from .layers import eca_kernel_size
from .model import FFNChoices, LocalViTConfig

_Same = TypeVar("_Same", bound="_LocalViTCost")


@dataclass(frozen=True)
class _LocalViTCost(AdditiveCost):
    vit: LocalViTConfig = field(default_factory=LocalViTConfig)

    def configured(self: _Same, **changes: Any) -> _Same:
        """Return the same cost in another ViT config: `macs.configured(image_size=32, patch_size=4)`."""
        return replace(self, vit=replace(self.vit, **changes))


@dataclass(frozen=True)
class Macs(_LocalViTCost):
    """Multiply-adds of one image, equal to what torch's flop counter (halved) finds in the extracted network."""

    unit = "MACs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the MACs of patch embedding and head."""
        f = self.vit
        return f.embed_dim * (f.patches * f.in_channels * f.patch_size**2 + f.num_classes)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the MACs of one block; the local feed-forward does not run on the class token."""
        f, c = self.vit, FFNChoices.of(self.vit, choices)
        attention = f.tokens * (4 * f.embed_dim**2 + 2 * f.tokens * f.embed_dim)
        if not c.kernel_size:
            return attention + f.tokens * 2 * f.embed_dim * c.hidden
        channel_attention = 2 * c.hidden * c.squeezed
        if c.channel_attention == "eca":
            channel_attention = c.hidden * eca_kernel_size(c.hidden)
        return attention + f.patches * c.hidden * (2 * f.embed_dim + c.kernel_size**2) + channel_attention


@dataclass(frozen=True)
class Params(_LocalViTCost):
    """Parameters of the extracted network."""

    unit = "parameters"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the parameters of patch embedding, class token, positions, last norm and head."""
        f = self.vit
        embedding = f.embed_dim * (f.in_channels * f.patch_size**2 + 1) + f.embed_dim * (f.tokens + 1)
        return embedding + 2 * f.embed_dim + (f.embed_dim + 1) * f.num_classes

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the parameters of one block."""
        c, dim = FFNChoices.of(self.vit, choices), self.vit.embed_dim
        norm1_and_attention = 2 * dim + 4 * dim * (dim + 1)
        if not c.kernel_size:
            return norm1_and_attention + 2 * dim + (dim + 1) * c.hidden + (c.hidden + 1) * dim
        norms = 4 * c.hidden + 2 * dim
        total = norm1_and_attention + 2 * dim * c.hidden + c.hidden * c.kernel_size**2 + norms
        if c.channel_attention == "se":
            total += (c.hidden + 1) * c.squeezed + (c.squeezed + 1) * c.hidden
        if c.channel_attention == "eca":
            total += eca_kernel_size(c.hidden)
        return total


macs = Macs()
params = Params()
