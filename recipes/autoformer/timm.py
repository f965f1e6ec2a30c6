"""Importing this module lets `timm.create_model` build AutoFormer's networks, and read folders of `export`."""

from nasx.pipeline.timm_models import TimmViT, registered

from .model import AutoFormer, AutoFormerConfig
from .problem import RECIPE
from .space import uniform

PAPER = "AutoFormer: Searching Transformers for Visual Recognition"


@registered(
    RECIPE, "nasx_autoformer", (uniform(240, 14, 4, 4), AutoFormerConfig()), paper_name=PAPER, first_conv="embed.proj"
)
class TimmAutoFormer(TimmViT, AutoFormer):
    """An AutoFormer network with the methods that timm's models have; weights are named as in `AutoFormer`."""

    default_pool = "avg"
