"""GLiT's search spaces (paper, table 2) and the two stages that the hierarchical search makes of them (section 3.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nasx import Arch, Space, one_of, repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """What each axis of a block offers, and the values that are held while an axis is not searched.

    `global_heads` counts the attention heads G among `num_heads`; the others are convolution. `qkv_ratio` is d_k over
    the width of the global heads, `mlp_ratio` is the paper's d_z, `expansion` E and `kernel_size` K are the local
    sub-module's. Defaults are GLiT-Tiny's.
    """

    blocks: int = 12
    num_heads: int = 3
    global_heads: tuple[int, ...] = (0, 1, 2, 3)
    kernel_size: tuple[int, ...] = (17, 31, 45)
    expansion: tuple[int, ...] = (1, 2, 4)
    qkv_ratio: tuple[float, ...] = (0.5, 1.0, 2.0)
    mlp_ratio: tuple[float, ...] = (2, 4, 6)
    held_kernel_size: int = 31
    held_expansion: int = 4
    held_qkv_ratio: float = 1.0
    held_mlp_ratio: float = 4

    def held(self) -> dict[str, float]:
        """Return the low-level axes that some block has, as stage one holds them, by pattern."""
        held = {"block.*.mlp_ratio": self.held_mlp_ratio}
        if min(self.global_heads) < self.num_heads:
            held |= {"block.*.kernel_size": self.held_kernel_size, "block.*.expansion": self.held_expansion}
        if max(self.global_heads) > 0:
            held["block.*.qkv_ratio"] = self.held_qkv_ratio
        return held

    def with_blocks(self, blocks: int) -> "Axes":
        """Return the same axes for another depth."""
        return replace(self, blocks=blocks)


TINY = Axes()
SMALL = Axes(num_heads=6, global_heads=(0, 2, 4, 6))
BASE = Axes(num_heads=12, global_heads=(0, 4, 8, 12))


def table2(axes: Axes = TINY) -> Space:
    """Return the joint space: every block has all axes that it uses, 198 distinct blocks for three heads."""
    local = Space(kernel_size=one_of(*axes.kernel_size), expansion=one_of(*axes.expansion))
    attention = Space(qkv_ratio=one_of(*axes.qkv_ratio))
    ffn = Space(mlp_ratio=one_of(*axes.mlp_ratio))

    def block(heads: int) -> Space:
        parts = [ffn]
        if heads > 0:
            parts.insert(0, attention)
        if heads < axes.num_heads:
            parts.insert(0, local)
        return Space(**{name: node for part in parts for name, node in part.nodes.items()})

    heads = one_of({heads: block(heads) for heads in axes.global_heads})
    return Space(block=repeat(Space(global_heads=heads), axes.blocks))


def reduced(axes: Axes = TINY) -> Space:
    """Return the union of what stage two can search: nine candidates for each kind of block (section 3.3).

    An all-local block searches K and E, an all-global one d_k and d_z, a mixed one E and d_z.
    """
    kernel_size, expansion = one_of(*axes.kernel_size), one_of(*axes.expansion)
    qkv_ratio, mlp_ratio = one_of(*axes.qkv_ratio), one_of(*axes.mlp_ratio)
    local = Space(kernel_size=kernel_size, expansion=expansion, mlp_ratio=axes.held_mlp_ratio)
    mixed = Space(
        kernel_size=axes.held_kernel_size, expansion=expansion, qkv_ratio=axes.held_qkv_ratio, mlp_ratio=mlp_ratio
    )
    only_global = Space(qkv_ratio=qkv_ratio, mlp_ratio=mlp_ratio)
    kinds = {h: local if h == 0 else only_global if h == axes.num_heads else mixed for h in axes.global_heads}
    return Space(block=repeat(Space(global_heads=one_of(kinds)), axes.blocks))


def with_inert_axes(axes: Axes = TINY) -> Space:
    """Return the space as the paper counts it, in which every block has every axis whether it uses it or not."""
    block = Space(
        global_heads=one_of(*axes.global_heads),
        kernel_size=one_of(*axes.kernel_size),
        expansion=one_of(*axes.expansion),
        qkv_ratio=one_of(*axes.qkv_ratio),
        mlp_ratio=one_of(*axes.mlp_ratio),
    )
    return Space(block=repeat(block, axes.blocks))


def heads_space(axes: Axes = TINY) -> Space:
    """Return stage one's space: the heads of every block, details held."""
    return table2(axes).pin(axes.held())


def details_space(heads: Arch, axes: Axes = TINY) -> Space:
    """Return stage two's space: the details of every block, heads fixed as in an architecture."""
    return reduced(axes).pin(heads.only("block.*.global_heads"))


def block_arch(
    axes: Axes, global_heads: int, kernel_size: int, expansion: int, qkv_ratio: float, mlp_ratio: float
) -> Mapping[str, float]:
    """Return the entries of one block, without those that it does not use."""
    entries: dict[str, float] = {"global_heads": global_heads}
    if global_heads < axes.num_heads:
        entries |= {"kernel_size": kernel_size, "expansion": expansion}
    if global_heads > 0:
        entries["qkv_ratio"] = qkv_ratio
    return entries | {"mlp_ratio": mlp_ratio}


def with_heads(heads: Sequence[int], axes: Axes = TINY) -> Arch:
    """Return the network that has these heads, block by block, with the details held."""
    details = axes.held_kernel_size, axes.held_expansion, axes.held_qkv_ratio, axes.held_mlp_ratio
    blocks = [block_arch(axes, count, *details) for count in heads]
    return Arch({f"block.{i}.{name}": value for i, block in enumerate(blocks) for name, value in block.items()})


def same_heads(heads: int, axes: Axes = TINY) -> Arch:
    """Return the network that has the same heads in every block, details held: table 1's rows.

    With all heads global it is the DeiT-shaped network.
    """
    return with_heads([heads] * axes.blocks, axes)


GLIT = reduced(TINY)
TABLE2 = table2(TINY)
