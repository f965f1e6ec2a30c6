"""What a GLiT network costs: exact MACs and parameters, and the paper's own count beside them.

A MAC is one multiply-add. Counted are convolutions, linear layers and the two attention products; not norms,
activations, biases or softmax.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nasx.arch import Value
from nasx.cost import AdditiveCost

from .model import BlockChoices, GLiTConfig


@dataclass(frozen=True)
class _GlitCost(AdditiveCost):
    vit: GLiTConfig = field(default_factory=GLiTConfig)

    def configured(self, **changes: Any) -> "_GlitCost":
        """Return the same cost in another ViT config: `macs.configured(image_size=32, patch_size=4)`."""
        return replace(self, vit=replace(self.vit, **changes))


@dataclass(frozen=True)
class Macs(_GlitCost):
    """Multiply-adds of one image, equal to what torch's flop counter (halved) finds in the extracted network."""

    unit = "MACs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the MACs of patch embedding and head."""
        f = self.vit
        return f.embed_dim * (f.patches * f.in_channels * f.patch_size**2 + f.num_classes)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the MACs of one block."""
        f, c = self.vit, BlockChoices.of(self.vit, choices)
        local_heads = f.num_heads - c.global_heads
        total = f.tokens * 2 * f.embed_dim * f.hidden_width(c.mlp_ratio)
        if f.variant.projection == "joint":
            total += f.tokens * f.embed_dim**2
        if c.global_heads:
            total += attention_macs(f, c.global_heads, c.qkv_ratio, pairs=f.tokens**2)
        if local_heads:
            if f.variant.locality == "window":
                pairs = f.tokens + f.patches * (c.window + 1)  # the class token sees all, a patch its window and it
                total += attention_macs(f, local_heads, c.qkv_ratio, pairs=pairs)
            else:
                read, channels = f.channels_read(local_heads), f.channels(local_heads)
                outputs = channels * c.expansion * (self.glu_outputs * read + kernel_area(f, c) + channels)
                total += f.tokens * outputs
        return total

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
        f = self.vit
        embedding = f.embed_dim * (f.in_channels * f.patch_size**2 + 1 + f.tokens + f.has_class_token)
        return embedding + 2 * f.embed_dim + (f.embed_dim + 1) * f.num_classes

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the parameters of one block."""
        f, c = self.vit, BlockChoices.of(self.vit, choices)
        mlp = f.hidden_width(c.mlp_ratio)
        total = 4 * f.embed_dim + 2 * f.embed_dim * mlp + mlp + f.embed_dim
        if f.variant.projection == "joint":
            total += (f.embed_dim + 1) * f.embed_dim
        if c.global_heads:
            total += attention_params(f, c.global_heads, c.qkv_ratio)
        if local_heads := f.num_heads - c.global_heads:
            if f.variant.locality == "window":
                total += attention_params(f, local_heads, c.qkv_ratio)
            else:
                read, channels = f.channels_read(local_heads), f.channels(local_heads)
                hidden = channels * c.expansion
                total += (read + 1) * 2 * hidden + hidden * (kernel_area(f, c) + 3) + (hidden + 1) * channels
                total += 2 * (2 * hidden + channels) if f.variant.local_norm == "every" else 0
        return total


def attention_macs(f: GLiTConfig, heads: int, qkv_ratio: float, *, pairs: int) -> int:
    """Return the MACs of some attention heads in which a number of pairs of tokens see each other."""
    read, inner, values, projected = _attention_widths(f, heads, qkv_ratio)
    return f.tokens * (read * (2 * inner + values) + values * projected) + pairs * (inner + values)


def attention_params(f: GLiTConfig, heads: int, qkv_ratio: float) -> int:
    """Return the parameters of some attention heads."""
    read, inner, values, projected = _attention_widths(f, heads, qkv_ratio)
    return (read + 1) * (2 * inner + values) + (values + 1) * projected


def _attention_widths(f: GLiTConfig, heads: int, qkv_ratio: float) -> tuple[int, int, int, int]:
    """Return what is read, the queries (as the keys), the values, and the outputs of the heads' own projection."""
    channels, inner = f.channels(heads), f.inner_width(heads, qkv_ratio)
    own = f.variant.projection == "separate"
    return f.channels_read(heads), inner, inner if own else channels, channels if own else 0


def kernel_area(f: GLiTConfig, c: BlockChoices) -> int:
    """Return the weights of a depthwise kernel."""
    return c.kernel_size ** (2 if f.variant.locality == "conv2d" else 1)


macs = Macs()
paper_macs = PaperMacs()
params = Params()
