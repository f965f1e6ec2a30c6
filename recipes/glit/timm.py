"""Importing this module lets `timm.create_model` build GLiT's networks, and read folders that `export` has written."""

from nasx.pipeline.timm_models import TimmViT, registered

from .model import GLIT_TINY, GLiT, GLiTConfig
from .problem import RECIPE

PAPER = "GLiT: Neural Architecture Search for Global and Local Image Transformer"
_TINY = GLIT_TINY, GLiTConfig()


@registered(RECIPE, "nasx_glit", _TINY, paper_name=PAPER)
@registered(RECIPE, "glit_tiny_patch16_224", _TINY, paper_name=PAPER, crop_pct=0.9)
class TimmGLiT(TimmViT, GLiT):
    """A GLiT network with the methods that timm's models have; weights are named as in `build`."""
