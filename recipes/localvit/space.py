"""LocalViT as a search space: which feed-forwards convolve over the image, and how.

A block without the depthwise stage is DeiT's own: a second LayerNorm and two Linear layers with GELU, class token
included, as in the authors' comparison of low, middle and high layers. So the space reaches from the plain transformer
to LocalViT.
"""

from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from nasx import Arch, Space, one_of, repeat
from nasx.arch import Value
from nasx.pipeline.config import Choices, OddSize


class LocalViTSpace(Choices):
    """What is searched in the feed-forward of each block; the section `space` of the settings, LocalViT-Tiny's."""

    blocks: PositiveInt = Field(12, description="number of blocks")
    depthwise: tuple[bool, ...] = Field((False, True), description="whether feed-forwards have the convolution")
    mlp_ratio: tuple[PositiveFloat, ...] = Field((2, 4, 6), description="hidden width over the block's, in all blocks")
    kernel_size: tuple[OddSize, ...] = Field((3, 5, 7), description="kernel sizes of the convolution, odd, in patches")
    activation: tuple[Literal["relu6", "hardswish"], ...] = Field(
        ("relu6", "hardswish"), description="activation functions of blocks with the convolution"
    )
    channel_attention: tuple[Literal["none", "se", "eca"], ...] = Field(
        ("none", "se", "eca"),
        description="attention over channels: none, squeeze-excitation, or efficient channel attention",
    )
    reduction: tuple[PositiveInt, ...] = Field(
        (48, 96, 192), description="hidden width over that inside squeeze-excitation"
    )
    gate: tuple[Literal["sigmoid", "hardsigmoid"], ...] = Field(
        ("sigmoid", "hardsigmoid"), description="function that ends efficient channel attention"
    )


TINY = LocalViTSpace()
SMALL = LocalViTSpace(reduction=(96, 192, 384))

VARIANTS: dict[int, Mapping[str, Value]] = {
    1: {"activation": "relu6", "channel_attention": "none"},
    2: {"activation": "hardswish", "channel_attention": "none"},
    3: {"activation": "hardswish", "channel_attention": "se"},
    4: {"activation": "hardswish", "channel_attention": "eca", "gate": "sigmoid"},
    5: {"activation": "hardswish", "channel_attention": "eca", "gate": "hardsigmoid"},
}
"""The published variants by their numbers, "act 1" to "act 5"; squeeze-excitation has a reduction beside."""


def locality(choices: LocalViTSpace = TINY) -> Space:
    """Return the space: 111 distinct blocks with the default choices."""
    opened = {"none": None, "se": Space(reduction=one_of(*choices.reduction)), "eca": Space(gate=one_of(*choices.gate))}
    ratio = one_of(*choices.mlp_ratio)
    local = Space(
        mlp_ratio=ratio,
        kernel_size=one_of(*choices.kernel_size),
        activation=one_of(*choices.activation),
        channel_attention=one_of({name: opened[name] for name in choices.channel_attention}),
    )
    stages = {False: Space(mlp_ratio=ratio), True: local}
    return Space(block=repeat(Space(depthwise=one_of({has: stages[has] for has in choices.depthwise})), choices.blocks))


def variant(
    act: int,
    *,
    blocks: int = 12,
    mlp_ratio: float = 4,
    kernel_size: int = 3,
    reduction: int = 192,
    local: Collection[int] | None = None,
) -> Arch:
    """Return the network of a published variant, the same in every block.

    `local` are the numbers of the blocks that have the depthwise stage, all by default; the others are DeiT's.
    """
    if act not in VARIANTS:
        raise ValueError(f"the variants are {', '.join(map(str, VARIANTS))}, but got {act}")
    depthwise: dict[str, Value] = {"mlp_ratio": mlp_ratio, "kernel_size": kernel_size, **VARIANTS[act]}
    if depthwise["channel_attention"] == "se":
        depthwise["reduction"] = reduction
    plain: dict[str, Value] = {"mlp_ratio": mlp_ratio}
    has = [local is None or i in local for i in range(blocks)]
    return Arch.from_parts("block", [{"depthwise": one} | (depthwise if one else plain) for one in has])


LOCALVIT_SPACE = locality(TINY)
