"""How LocalViT's networks share weights."""

from functools import partial

from nasx import Space
from nasx.nn import Rule, Supernet, centred

from .model import LocalViTConfig, build_in


def supernet(space: Space, vit: LocalViTConfig, *, drop_path: float = 0.0, init_std: float = 0.02) -> Supernet:
    """Return the supernet of a LocalViT space.

    Sizes are entangled: hidden widths, kernels and reductions are slices of the largest that the space reaches.
    Structures are separate: DeiT's feed-forward, the local one of each activation, and in that each kind of channel
    attention have weights (and BatchNorm statistics) of their own. Attention is one for all.
    """
    make = partial(build_in, vit, drop_path=drop_path, init_std=init_std)
    options = [option for part in space.parts("block") for option in part if option["depthwise"]]
    layout: dict[str, Rule] = {}
    separate: dict[str, tuple[str, ...]] = {}
    if options:
        layout["*.local.depthwise.weight"] = centred
        separate["*.local"] = ("activation",)
    if any(option["channel_attention"] != "none" for option in options):
        gated = any("gate" in option for option in options)
        separate["*.local.attention"] = ("activation", "gate") if gated else ("activation",)
    if any(option["channel_attention"] == "eca" for option in options):
        layout["*.local.attention.conv.weight"] = centred
    return Supernet(make, space, layout=layout, separate=separate)
