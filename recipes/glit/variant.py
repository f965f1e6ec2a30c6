"""How a global-local block computes: where the paper's text and the released code differ, and table 6's localities."""

from dataclasses import dataclass
from typing import Literal, get_args

SubmoduleInput = Literal["split", "full"]
Projection = Literal["separate", "joint"]
LocalNorm = Literal["depthwise", "every"]
Activation = Literal["gelu", "swish"]
Locality = Literal["conv1d", "conv2d", "window"]
PointwiseInit = Literal["uniform", "normal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The switches of a block; the defaults are the released code's.

    - `submodule_input`: attention reads the first channels and convolution the others ("split"), or both read all.
    - `projection`: each sub-module projects its own channels ("separate"), or one layer projects what both give.
    - `local_norm`: BatchNorm after the depthwise convolution only, or norm and activation after every convolution.
    - `ffn_activation`: GELU or Swish, in the feed-forward.
    - `local_dropout` acts after each convolution, `ffn_dropout` after each of the feed-forward's layers,
      `attention_dropout` on the attention weights: probabilities from 0 to below 1.
    - `pointwise_init`: weights and biases of the local pointwise convolutions are drawn as torch draws a convolution's
      ("uniform"), or as those of all other linear layers, truncated normal and 0.
    - `locality`: what the local heads are (table 6). Convolution along the row of tokens; convolution over the grid of
      patches, for which the class token is dropped and the mean of the tokens classified; or attention inside windows
      of successive patches, in which the class token attends to all tokens and is seen by all.
    """

    submodule_input: SubmoduleInput = "split"
    projection: Projection = "separate"
    local_norm: LocalNorm = "depthwise"
    ffn_activation: Activation = "gelu"
    local_dropout: float = 0.0
    ffn_dropout: float = 0.0
    attention_dropout: float = 0.0
    pointwise_init: PointwiseInit = "uniform"
    locality: Locality = "conv1d"

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is one of {', '.join(map(repr, words))}, but got {getattr(self, name)!r}")
        for name in ("local_dropout", "ffn_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`0 <= {name} < 1` must hold, but got {getattr(self, name)}")


_WORDS = {
    "submodule_input": get_args(SubmoduleInput),
    "projection": get_args(Projection),
    "local_norm": get_args(LocalNorm),
    "ffn_activation": get_args(Activation),
    "pointwise_init": get_args(PointwiseInit),
    "locality": get_args(Locality),
}

OFFICIAL = Variant()
"""The authors' released code, which the published weights belong to."""

PAPER = Variant(
    submodule_input="full",
    projection="joint",
    local_norm="every",
    ffn_activation="swish",
    local_dropout=0.1,
    ffn_dropout=0.1,
    attention_dropout=0.1,
)
"""The paper's text (section 3.1). It gives no dropout rates; 0.1 is that of the Conformer, whose block it adapts."""

VARIANTS = {"official": OFFICIAL, "paper": PAPER}
