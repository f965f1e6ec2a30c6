"""What a GLiT network costs: exact MACs and parameters, and the paper's own count beside them.

A MAC is one multiply-add. Counted are convolutions, linear layers and the two attention products; not norms,
activations, biases or softmax.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nasx.arch import Value
from nasx.cost import AdditiveCost
from recipes.glit.model import BlockChoices, Frame, hidden_width, inner_width


@dataclass(frozen=True)
class _GlitCost(AdditiveCost):
    frame: Frame = field(default_factory=Frame)

    def configured(self, **changes: Any) -> "_GlitCost":
        """Return the same cost in another frame: `macs.configured(image_size=32, patch_size=4)`."""
        return replace(self, frame=replace(self.frame, **changes))


@dataclass(frozen=True)
class Macs(_GlitCost):
    """Multiply-adds of one image, equal to what torch's flop counter (halved) finds in the extracted network."""

    unit = "MACs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the MACs of patch embedding and head."""
        f = self.frame
        return f.embed_dim * (f.patches * f.in_channels * f.patch_size**2 + f.num_classes)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the MACs of one block."""
        f, c = self.frame, BlockChoices.of(choices)
        total = 2 * f.embed_dim * hidden_width(f, c.mlp_ratio)
        if f.variant.projection == "joint":
            total += f.embed_dim**2
        if c.global_heads:
            read, channels, inner, values = attention_widths(f, c)
            total += read * (2 * inner + values) + f.tokens * (inner + values)
            total += values * channels if f.variant.projection == "separate" else 0
        if c.global_heads < f.num_heads:
            read, channels, hidden = local_widths(f, c)
            total += self.glu_outputs * read * hidden + hidden * c.kernel_size + hidden * channels
        return f.tokens * total

    @property
    def glu_outputs(self) -> int:
        """Outputs of the first pointwise convolution per hidden channel: the GLU needs a value and a gate."""
        return 2


@dataclass(frozen=True)
class PaperMacs(Macs):
    """The authors' count, which leaves out the GLU's gate; for comparison with the paper's tables only."""

    unit = "MACs by the paper's count"

    @property
    def glu_outputs(self) -> int:
        """One output per hidden channel, as the authors' formula has it."""
        return 1


@dataclass(frozen=True)
class Params(_GlitCost):
    """Parameters of the extracted network."""

    unit = "parameters"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the parameters of patch embedding, class token, positions, last norm and head."""
        f = self.frame
        embedding = f.embed_dim * (f.in_channels * f.patch_size**2 + 1) + f.embed_dim * (f.tokens + 1)
        return embedding + 2 * f.embed_dim + (f.embed_dim + 1) * f.num_classes

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the parameters of one block."""
        f, c = self.frame, BlockChoices.of(choices)
        mlp = hidden_width(f, c.mlp_ratio)
        total = 4 * f.embed_dim + 2 * f.embed_dim * mlp + mlp + f.embed_dim
        if f.variant.projection == "joint":
            total += (f.embed_dim + 1) * f.embed_dim
        if c.global_heads:
            read, channels, inner, values = attention_widths(f, c)
            total += (read + 1) * (2 * inner + values)
            total += (values + 1) * channels if f.variant.projection == "separate" else 0
        if c.global_heads < f.num_heads:
            read, channels, hidden = local_widths(f, c)
            total += (read + 1) * 2 * hidden + hidden * (c.kernel_size + 3) + (hidden + 1) * channels
            total += 2 * (2 * hidden + channels) if f.variant.local_norm == "every" else 0
        return total


def attention_widths(f: Frame, c: BlockChoices) -> tuple[int, int, int, int]:
    """Return a block's attention widths: what it reads and gives, queries (as keys), and values."""
    channels, inner = f.channels(c.global_heads), inner_width(f, c.global_heads, c.qkv_ratio)
    return f.channels_read(c.global_heads), channels, inner, channels if f.variant.projection == "joint" else inner


def local_widths(f: Frame, c: BlockChoices) -> tuple[int, int, int]:
    """Return a block's local widths: what it reads and gives, and the expanded one between."""
    heads = f.num_heads - c.global_heads
    return f.channels_read(heads), f.channels(heads), f.channels(heads) * c.expansion


macs = Macs()
paper_macs = PaperMacs()
params = Params()
