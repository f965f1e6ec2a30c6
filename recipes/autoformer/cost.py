"""What an AutoFormer network costs: exact MACs and parameters, counted block by block.

A MAC is one multiply-add of the network as it is run. Counted are the patch embedding, linear layers, the two attention
products, and what relative positions multiply: queries and sums of attention with the vectors that each token meets,
and the one-hot places that widen both attention products, padding included; not norms, activations, biases or softmax.
Relative positions are about a tenth of them at the paper's size; a product with a vector for every pair of tokens, as
their definition reads, would be more.
"""

from functools import partial

from nasx.measure import CountedViTCost

from .model import AutoFormer, AutoFormerConfig

Macs = partial(CountedViTCost, build=AutoFormer, kind="macs")
Params = partial(CountedViTCost, build=AutoFormer, kind="params")

macs, params = Macs(AutoFormerConfig()), Params(AutoFormerConfig())
