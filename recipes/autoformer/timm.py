"""Importing this module lets `timm.create_model` build AutoFormer's networks, and read folders of `export`."""

from typing import Any

import timm.models
from torch import nn

from nasx.pipeline.timm_models import TimmViT, create_timm_model, untrained_cfgs

from .model import AutoFormer, AutoFormerConfig
from .problem import RECIPE
from .space import uniform

__all__ = ["TimmAutoFormer", "nasx_autoformer"]


class TimmAutoFormer(TimmViT, AutoFormer):
    """An AutoFormer network with the methods that timm's models have; weights are named as in `build`."""

    default_pool = "avg"


default_cfgs = untrained_cfgs(
    "nasx_autoformer",
    paper_name="AutoFormer: Searching Transformers for Visual Recognition",
    first_conv="embed.proj",
)


@timm.models.register_model
def nasx_autoformer(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Return the network of an `arch` of the sizes `vit`, the largest of AutoFormer-Tiny by default."""
    default = uniform(240, 14, 4, 4), AutoFormerConfig()
    return create_timm_model(TimmAutoFormer, RECIPE, "nasx_autoformer", pretrained, default, settings)
