"""Importing this module lets `timm.create_model` build GLiT's networks, and read folders that `export` has written."""

from typing import Any

import timm.models
from torch import nn

from nasx.pipeline.timm_models import TimmViT, create_timm_model, untrained_cfgs

from .model import GLIT_TINY, GLiT, GLiTConfig
from .problem import RECIPE

__all__ = ["TimmGLiT", "glit_tiny_patch16_224", "nasx_glit"]

_PAPER = "GLiT: Neural Architecture Search for Global and Local Image Transformer"


class TimmGLiT(TimmViT, GLiT):
    """A GLiT network with the methods that timm's models have; weights are named as in `build`."""


default_cfgs = {
    **untrained_cfgs("nasx_glit", paper_name=_PAPER),
    **untrained_cfgs("glit_tiny_patch16_224", paper_name=_PAPER, crop_pct=0.9),
}


@timm.models.register_model
def nasx_glit(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Return the network of an `arch` of the sizes `vit`, GLiT-Tiny by default; other settings are timm's."""
    return create_timm_model(TimmGLiT, RECIPE, "nasx_glit", pretrained, (GLIT_TINY, GLiTConfig()), settings)


@timm.models.register_model
def glit_tiny_patch16_224(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Return GLiT-Tiny; settings are timm's, such as `num_classes` and `features_only`."""
    return create_timm_model(TimmGLiT, RECIPE, "glit_tiny_patch16_224", pretrained, (GLIT_TINY, GLiTConfig()), settings)
