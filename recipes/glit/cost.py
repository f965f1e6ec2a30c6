"""What a GLiT network costs: exact MACs and parameters, and the paper's own count beside them.

A MAC is one multiply-add. Counted are convolutions, linear layers and the two attention products; not norms,
activations, biases or softmax.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nasx.arch import Value
from nasx.cost import AdditiveCost
from recipes.glit.model import Frame, inner_width


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
        f, heads = self.frame, int(choices["global_heads"])
        total = 2 * f.embed_dim * int(f.embed_dim * float(choices["mlp_ratio"]))
        if heads:
            channels, inner = f.channels(heads), inner_width(f, heads, float(choices["qkv_ratio"]))
            total += 4 * channels * inner + 2 * f.tokens * inner
        if heads < f.num_heads:
            channels = f.channels(f.num_heads - heads)
            hidden = channels * int(choices["expansion"])
            total += self.glu_outputs * channels * hidden + hidden * int(choices["kernel_size"]) + hidden * channels
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
        f, heads = self.frame, int(choices["global_heads"])
        mlp = int(f.embed_dim * float(choices["mlp_ratio"]))
        total = 4 * f.embed_dim + 2 * f.embed_dim * mlp + mlp + f.embed_dim
        if heads:
            channels, inner = f.channels(heads), inner_width(f, heads, float(choices["qkv_ratio"]))
            total += (channels + 1) * 3 * inner + (inner + 1) * channels
        if heads < f.num_heads:
            channels = f.channels(f.num_heads - heads)
            hidden = channels * int(choices["expansion"])
            depthwise_and_norm = hidden * (int(choices["kernel_size"]) + 3)
            total += (channels + 1) * 2 * hidden + depthwise_and_norm + (hidden + 1) * channels
        return total


macs = Macs()
paper_macs = PaperMacs()
params = Params()
