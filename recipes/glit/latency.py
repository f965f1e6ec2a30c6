"""Latency of GLiT's networks: the blocks that `nasx.latency.measure_latency` times."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from nasx import Arch
from nasx.arch import Value
from nasx.latency import Timed

from .model import Block, GLiT, GLiTConfig, build_in


@dataclass(frozen=True, slots=True)
class GLiTBlocks:
    """Builds what a ViT config's networks consist of, for batches of some images; GLiT-Tiny's and one image by default.

    Examples:
        >>> latency = measure_latency(TABLE2, GLiTBlocks())
        >>> fast = TABLE2.within(Budget(latency, at_most=8_000))
    """

    vit: GLiTConfig = field(default_factory=GLiTConfig)
    batch_size: int = 1

    def fixed(self, shared: Mapping[str, Value]) -> Timed:
        """Return patch embedding, class token, norm and head, which is a network without blocks."""
        return GLiT(self.vit, []), self._images()

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> Timed:
        """Return a block and its tokens (B, N, D)."""
        block = Block(self.vit, choices)
        return block, torch.randn(self.batch_size, self.vit.tokens, self.vit.embed_dim)

    def network(self, arch: Arch) -> Timed:
        """Return a whole network and its images."""
        return build_in(self.vit, arch), self._images()

    def _images(self) -> torch.Tensor:
        f = self.vit
        return torch.randn(self.batch_size, f.in_channels, f.image_size, f.image_size)
