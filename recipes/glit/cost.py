"""What a GLiT network costs: exact MACs and parameters, and the paper's own count beside them.

A MAC is one multiply-add. Counted are convolutions, linear layers and the two attention products; not norms,
activations, biases or softmax.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from nasx.arch import Value
from nasx.measure import CountedViTCost, ViTCost
from nasx.nn import hidden_width

from .model import BlockChoices, GLiTConfig, build_in


@dataclass(frozen=True)
class Macs(ViTCost):
    """Multiply-adds of one image, equal to what torch's flop counter (halved) finds in the extracted network.

    A formula, because counting the 198 blocks of a space takes seconds.
    """

    vit: GLiTConfig = field(default_factory=GLiTConfig)
    unit = "MACs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the MACs of patch embedding and head."""
        f = self.vit
        return f.embed_dim * (f.patches * f.in_channels * f.patch_size**2 + f.num_classes)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the MACs of one block."""
        f, c = self.vit, BlockChoices.of(self.vit, choices)
        local_heads = f.num_heads - c.global_heads
        total = f.tokens * 2 * f.embed_dim * hidden_width(f.embed_dim, c.mlp_ratio)
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


def attention_macs(f: GLiTConfig, heads: int, qkv_ratio: float, *, pairs: int) -> int:
    """Return the MACs of some attention heads in which a number of pairs of tokens see each other."""
    read, channels, inner = f.channels_read(heads), f.channels(heads), f.inner_width(heads, qkv_ratio)
    values, projected = (inner, channels) if f.variant.projection == "separate" else (channels, 0)
    return f.tokens * (read * (2 * inner + values) + values * projected) + pairs * (inner + values)


def kernel_area(f: GLiTConfig, c: BlockChoices) -> int:
    """Return the weights of a depthwise kernel."""
    return c.kernel_size ** (2 if f.variant.locality == "conv2d" else 1)


Params = partial(CountedViTCost, build=build_in, kind="params")
"""Parameters of the extracted network, counted block by block."""

macs = Macs()
paper_macs = PaperMacs()
params = Params(GLiTConfig())
