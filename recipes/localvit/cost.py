"""What a LocalViT network costs: exact MACs and parameters, counted block by block.

A MAC is one multiply-add. Counted are convolutions, linear layers and the two attention products; not norms,
activations, biases, pooling or softmax.
"""

from functools import partial

from nasx.measure.vit import CountedViTCost

from .model import LocalViTConfig, build_in

Macs = partial(CountedViTCost, build=build_in, kind="macs")
Params = partial(CountedViTCost, build=build_in, kind="params")

macs, params = Macs(LocalViTConfig()), Params(LocalViTConfig())
