"""Importing this module lets `timm.create_model` build LocalViT's networks, and read folders of `export`."""

from nasx.pipeline.timm_models import TimmViT, registered

from .model import LOCALVIT_TINY_ACT3, LocalViT, LocalViTConfig
from .problem import RECIPE

PAPER = "LocalViT: Bringing Locality to Vision Transformers"


@registered(RECIPE, "nasx_localvit", (LOCALVIT_TINY_ACT3, LocalViTConfig()), paper_name=PAPER)
class TimmLocalViT(TimmViT, LocalViT):
    """A LocalViT network with the methods that timm's models have; weights are named as in `LocalViT`."""
