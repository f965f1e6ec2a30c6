"""How LocalViT's networks share weights."""

from functools import partial

from nasx import Space
from nasx.nn import Rule, Supernet, centred

from .model import LocalViT, LocalViTConfig


def supernet(space: Space, vit: LocalViTConfig, *, drop_path: float = 0.0, init_std: float = 0.02) -> Supernet:
    """Return the supernet of a LocalViT space.

    Sizes are entangled: hidden widths, kernels and reductions are slices of the largest that the space reaches.
    Structures are separate: DeiT's feed-forward, the local one of each activation, and in that each kind of channel
    attention have weights (and BatchNorm statistics) of their own. Attention is one for all.
    """
    make = partial(LocalViT, vit, drop_path=drop_path, init_std=init_std)
    choices = {name for part in space.parts("block") for option in part for name in option}
    layout: dict[str, Rule] = {}
    separate: dict[str, tuple[str, ...]] = {}
    if "activation" in choices:
        layout["*.local.depthwise.weight"] = centred
        separate["*.local"] = ("activation",)
    if "gate" in choices:
        layout["*.local.attention.conv.weight"] = centred
        separate["*.local.attention"] = ("activation", "gate")
    return Supernet(make, space, layout=layout, separate=separate)
