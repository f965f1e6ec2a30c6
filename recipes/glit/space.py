"""GLiT's search spaces (paper, table 2) and the two stages that the hierarchical search makes of them (section 3.3)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from nasx import Arch, Space, one_of, repeat
from nasx.arch import Value
from nasx.pipeline.config import Choices, OddSize

from .variant import Locality

Number = Annotated[int | float, Field(gt=0)]


class SpaceConfig(Choices):
    """What each choice of a block offers, and the values that are held while a choice is not searched.

    The section `space` of the settings. `global_heads` counts the attention heads G of a block; the others are local.
    `qkv_ratio` is d_k over the width of the heads, `mlp_ratio` is the paper's d_z, `expansion` E and `kernel_size` K
    are those of convolution as locality. Where attention in windows is the locality (table 6), `window` in patches
    takes their place, and `qkv_ratio` is that of all heads. Defaults are GLiT-Tiny's.
    """

    blocks: PositiveInt = Field(12, description="number of blocks")
    locality: Locality = Field("conv1d", description="what the local heads are: conv1d, conv2d or window (table 6)")
    global_heads: tuple[int, ...] = Field(
        (0, 1, 2, 3), description="numbers of attention heads of a block; its other heads are local"
    )
    kernel_size: tuple[OddSize, ...] = Field(
        (17, 31, 45), description="kernel sizes of the local convolution, odd, in tokens"
    )
    expansion: tuple[PositiveInt, ...] = Field(
        (1, 2, 4), description="hidden width of the local convolution over its input"
    )
    window: tuple[PositiveInt, ...] = Field((14, 28, 49), description="patches that see each other; of window only")
    qkv_ratio: tuple[Number, ...] = Field(
        (0.5, 1.0, 2.0), description="width of queries, keys and values over that of the heads"
    )
    mlp_ratio: tuple[Number, ...] = Field(
        (2, 4, 6), description="hidden width of a block's MLP over the network's width"
    )
    held_kernel_size: PositiveInt = Field(31, description="`kernel_size` while stage one searches the heads")
    held_expansion: PositiveInt = Field(4, description="`expansion` in stage one")
    held_window: PositiveInt = Field(28, description="`window` in stage one")
    held_qkv_ratio: Number = Field(1.0, description="`qkv_ratio` in stage one")
    held_mlp_ratio: Number = Field(4, description="`mlp_ratio` in stage one")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("kernel_size", "expansion", "window", "qkv_ratio", "mlp_ratio"):
            held, offered = getattr(self, f"held_{name}"), getattr(self, name)
            if held not in offered:
                raise ValueError(f"space.held_{name} must be one of space.{name}, {list(offered)}, but got {held}")
        return self


class GLiTSpace(SpaceConfig):
    """The same with the number of attention heads that a block shares out, which the ViT config has too."""

    num_heads: PositiveInt = 3

    @property
    def all_details(self) -> tuple[str, ...]:
        """The low-level choices, in order."""
        local = ("window",) if self.locality == "window" else ("kernel_size", "expansion")
        return (*local, "qkv_ratio", "mlp_ratio")

    def details(self, global_heads: int) -> tuple[str, ...]:
        """Return the low-level choices that a block of some heads uses."""
        unused: set[str] = set()
        if global_heads == self.num_heads:
            unused |= {"kernel_size", "expansion", "window"}
        elif global_heads == 0 and self.locality != "window":
            unused |= {"qkv_ratio"}
        return tuple(name for name in self.all_details if name not in unused)

    def searched_details(self, global_heads: int) -> tuple[str, ...]:
        """Return those of them that stage two searches: two for every kind of block (section 3.3)."""
        if global_heads == self.num_heads:
            return "qkv_ratio", "mlp_ratio"
        if global_heads == 0:
            return ("window", "qkv_ratio") if self.locality == "window" else ("kernel_size", "expansion")
        return ("qkv_ratio" if self.locality == "window" else "expansion"), "mlp_ratio"

    def held_details(self) -> dict[str, Value]:
        """Return what each low-level choice is held at."""
        return {name: getattr(self, f"held_{name}") for name in self.all_details}

    def held(self) -> dict[str, Value]:
        """Return the low-level choices that some block has, as stage one holds them, by pattern."""
        used = {name for heads in self.global_heads for name in self.details(heads)}
        return {f"block.*.{name}": value for name, value in self.held_details().items() if name in used}

    def with_blocks(self, blocks: int) -> "GLiTSpace":
        """Return the same choices for another depth."""
        return self.model_copy(update={"blocks": blocks})


TINY = GLiTSpace()
# DeiT's other widths: heads go over in thirds
SMALL = GLiTSpace(num_heads=6, global_heads=(0, 2, 4, 6))
BASE = GLiTSpace(num_heads=12, global_heads=(0, 4, 8, 12))

TINY_WINDOW = GLiTSpace(locality="window")
"""Table 6: attention in windows of patches as locality."""

TINY_CONV2D = GLiTSpace(locality="conv2d", kernel_size=(3, 5, 7), held_kernel_size=5)
"""Table 6: convolution over the grid of patches as locality."""


def table2(choices: GLiTSpace = TINY) -> Space:
    """Return the joint space: every block has all choices that it uses, 198 distinct blocks for three heads."""

    def block(heads: int) -> Space:
        return Space(**{name: one_of(*getattr(choices, name)) for name in choices.details(heads)})

    heads = one_of({heads: block(heads) for heads in choices.global_heads})
    return Space(block=repeat(Space(global_heads=heads), choices.blocks))


def reduced(choices: GLiTSpace = TINY) -> Space:
    """Return the union of what stage two can search: nine candidates for each kind of block (section 3.3).

    An all-local block searches K and E, an all-global one d_k and d_z, a mixed one E and d_z. Where attention in
    windows is the locality, d_k stands in for E.
    """

    def block(heads: int) -> Space:
        searched, held = choices.searched_details(heads), choices.held_details()
        nodes = {n: one_of(*getattr(choices, n)) if n in searched else held[n] for n in choices.details(heads)}
        return Space(**nodes)

    heads = one_of({heads: block(heads) for heads in choices.global_heads})
    return Space(block=repeat(Space(global_heads=heads), choices.blocks))


def with_unused_choices(choices: GLiTSpace = TINY) -> Space:
    """Return the space as the paper counts it, in which every block has every choice whether it uses it or not."""
    names = ("global_heads", *choices.all_details)
    return Space(block=repeat(Space(**{name: one_of(*getattr(choices, name)) for name in names}), choices.blocks))


def heads_space(choices: GLiTSpace = TINY) -> Space:
    """Return stage one's space: the heads of every block, details held."""
    return table2(choices).pin(choices.held())


def details_space(heads: Arch, choices: GLiTSpace = TINY) -> Space:
    """Return stage two's space: the details of every block, heads fixed as in an architecture."""
    return reduced(choices).pin(heads.only("block.*.global_heads"))


def block_arch(choices: GLiTSpace, global_heads: int, details: Mapping[str, Value]) -> dict[str, Value]:
    """Return the entries of one block, without the details that it does not use."""
    return {"global_heads": global_heads} | {name: details[name] for name in choices.details(global_heads)}


def with_heads(heads: Sequence[int], choices: GLiTSpace = TINY) -> Arch:
    """Return the network that has these heads, block by block, with the details held."""
    return Arch.from_parts("block", [block_arch(choices, count, choices.held_details()) for count in heads])


def same_heads(heads: int, choices: GLiTSpace = TINY) -> Arch:
    """Return the network that has the same heads in every block, details held: table 1's rows.

    With all heads global it is the DeiT-shaped network.
    """
    return with_heads([heads] * choices.blocks, choices)


GLIT = reduced(TINY)
TABLE2 = table2(TINY)
