"""Latency of GLiT's networks: the blocks that `nasx.latency.measure_latency` times."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from nasx import Arch
from nasx.arch import Value
from nasx.latency import Timed

from .model import Block, Frame, GLiT, build_in


@dataclass(frozen=True, slots=True)
class GLiTBlocks:
    """Builds what a frame's networks consist of, for batches of some images; GLiT-Tiny's and one image by default.

    Examples:
        >>> latency = measure_latency(TABLE2, GLiTBlocks())
        >>> fast = TABLE2.within(Budget(latency, at_most=8_000))
    """

    frame: Frame = field(default_factory=Frame)
    batch_size: int = 1

    def fixed(self, shared: Mapping[str, Value]) -> Timed:
        """Return patch embedding, class token, norm and head, which is a network without blocks."""
        return GLiT(self.frame, []), self._images()

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> Timed:
        """Return a block and its tokens (B, N, D)."""
        block = Block(self.frame, choices)
        return block, torch.randn(self.batch_size, self.frame.tokens, self.frame.embed_dim)

    def network(self, arch: Arch) -> Timed:
        """Return a whole network and its images."""
        return build_in(self.frame, arch), self._images()

    def _images(self) -> torch.Tensor:
        f = self.frame
        return torch.randn(self.batch_size, f.in_channels, f.image_size, f.image_size)
