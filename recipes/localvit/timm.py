"""Importing this module lets `timm.create_model` build LocalViT's networks, and read folders of `export`."""

from typing import Any

import timm.models
from torch import nn

from nasx.pipeline.timm_models import TimmViT, create_timm_model, untrained_cfgs

from .model import LOCALVIT_TINY_ACT3, LocalViT, LocalViTConfig
from .problem import RECIPE

__all__ = ["TimmLocalViT", "nasx_localvit"]


class TimmLocalViT(TimmViT, LocalViT):
    """A LocalViT network with the methods that timm's models have; weights are named as in `build`."""


default_cfgs = untrained_cfgs("nasx_localvit", paper_name="LocalViT: Bringing Locality to Vision Transformers")


@timm.models.register_model
def nasx_localvit(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Return the network of an `arch` of the sizes `vit`, LocalViT-Tiny by default; other settings are timm's."""
    return create_timm_model(
        TimmLocalViT, RECIPE, "nasx_localvit", pretrained, (LOCALVIT_TINY_ACT3, LocalViTConfig()), settings
    )
