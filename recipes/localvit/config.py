"""The settings of a LocalViT run, and the presets."""

from pydantic import Field, PositiveInt

from nasx.pipeline import presets
from nasx.pipeline.config import Budgets, Retraining, Search, SupernetTraining
from nasx.pipeline.vit import HeadedModel, ViTRunConfig

from .model import LocalViTConfig
from .space import LocalViTSpace


class Model(HeadedModel):
    """The sizes that all networks share."""

    num_heads: PositiveInt = Field(4, description="attention heads of every block")


class Config(ViTRunConfig):
    """A run of the LocalViT recipe."""

    vit_type = LocalViTConfig
    model: Model = Field(Model(), description="sizes that all networks share")
    space: LocalViTSpace = Field(LocalViTSpace(), description="what is searched")
    budget: Budgets = Field(Budgets(), description="bounds on the network")


DIGITS = Config(
    **presets.DIGITS_RUN,
    model=Model(patch_size=2, embed_dim=32, init_std=0.2),
    space=LocalViTSpace(blocks=4, mlp_ratio=(2, 3, 4), kernel_size=(3, 5), reduction=(4, 8)),
    budget=Budgets(at_least=0.7e6, at_most=1.0e6),
)

LOCALVIT_TINY = Config(
    preset="localvit-tiny",
    data=presets.imagenet(),
    budget=Budgets(at_most=1.3e9),
    supernet=SupernetTraining(augment=presets.CROPS),
    search=Search(racing_error=0),  # all candidates see all images
    retrain=Retraining(augment=presets.DEIT_AUGMENT, repeats=3, clip_norm=None),
)

PRESETS = {config.preset: config for config in (DIGITS, LOCALVIT_TINY)}
