"""AutoFormer's search spaces (paper, table 1), and the networks that their supernets are slices of."""

from pydantic import Field, PositiveFloat, PositiveInt

from nasx import Arch, Space, one_of, repeat
from nasx.pipeline.config import Choices


class AutoFormerSpace(Choices):
    """What is searched: one width and one depth for the network, heads and MLP ratio for each of its blocks.

    Every head has the same width, so the heads of a block say how wide its queries, keys and values are. The section
    `space` of the settings; defaults are AutoFormer-Tiny's.
    """

    embed_dim: tuple[PositiveInt, ...] = Field((192, 216, 240), description="widths of the network, in channels")
    depth: tuple[PositiveInt, ...] = Field((12, 13, 14), description="numbers of blocks")
    num_heads: tuple[PositiveInt, ...] = Field((3, 4), description="numbers of attention heads of a block")
    mlp_ratio: tuple[PositiveFloat, ...] = Field(
        (3.5, 4), description="hidden width of a block's MLP over the network's width"
    )

    def space(self) -> Space:
        """Return the space of these choices."""
        block = Space(num_heads=one_of(*self.num_heads), mlp_ratio=one_of(*self.mlp_ratio))
        return Space(embed_dim=one_of(*self.embed_dim), block=repeat(block, one_of(*self.depth)))

    def largest(self) -> Arch:
        """Return the network that every network of the space is a slice of."""
        return uniform(max(self.embed_dim), max(self.depth), max(self.num_heads), max(self.mlp_ratio))


def uniform(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float) -> Arch:
    """Return the network whose blocks are all the same."""
    block = {"num_heads": num_heads, "mlp_ratio": mlp_ratio}
    return Arch.from_parts("block", [block] * depth, {"embed_dim": embed_dim, "block.count": depth})


TINY_CHOICES = AutoFormerSpace()
SMALL_CHOICES = AutoFormerSpace(embed_dim=(320, 384, 448), num_heads=(5, 6, 7), mlp_ratio=(3, 3.5, 4))
BASE_CHOICES = AutoFormerSpace(embed_dim=(528, 576, 624), depth=(14, 15, 16), num_heads=(9, 10), mlp_ratio=(3, 3.5, 4))
"""Heads as the authors' released code has them; the paper's table begins at 8."""

TINY, SMALL, BASE = TINY_CHOICES.space(), SMALL_CHOICES.space(), BASE_CHOICES.space()

TINY_SUPERNET, SMALL_SUPERNET, BASE_SUPERNET = uniform(256, 14, 4, 4), uniform(448, 14, 7, 4), uniform(640, 16, 10, 4)
"""The largest networks of the published supernets; Tiny's and Base's are wider than any in their spaces."""
