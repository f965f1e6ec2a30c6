"""What a LocalViT network costs: exact MACs and parameters, counted block by block."""

from functools import partial

from nasx.measure import CountedViTCost

from .model import LocalViT, LocalViTConfig

Macs = partial(CountedViTCost, build=LocalViT, kind="macs")
Params = partial(CountedViTCost, build=LocalViT, kind="params")

macs, params = Macs(LocalViTConfig()), Params(LocalViTConfig())
