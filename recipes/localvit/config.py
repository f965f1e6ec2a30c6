"""The settings of a LocalViT run, and the presets."""

from pydantic import Field, PositiveInt

from nasx.pipeline.config import Augmentation, Budgets, Data, Retraining, Search, SupernetTraining
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
    preset="digits",
    threads=1,
    data=Data(source="digits", image_size=8, val_fraction=0.2),
    model=Model(patch_size=2, embed_dim=32, num_heads=4, init_std=0.2),
    space=LocalViTSpace(blocks=4, mlp_ratio=(2, 3, 4), kernel_size=(3, 5), reduction=(4, 8)),
    budget=Budgets(at_least=0.7e6, at_most=1.0e6),
    supernet=SupernetTraining(
        optimizer="adamw", epochs=25, batch_size=64, lr=1e-2, weight_decay=0.05, warmup_epochs=2, clip_norm=1.0
    ),
    search=Search(
        population=20, generations=6, parents=8, top_k=2, recalibration_batches=2, recalibration_batch_size=256
    ),
    retrain=Retraining(
        epochs=32,
        batch_size=64,
        lr=5e-3,
        warmup_epochs=3,
        drop_path=0.0,
        mixup=0.0,
        cutmix=0.0,
        augment=Augmentation(pad_crop=1),
    ),
)

_CROPS = Augmentation(resized_crop=(0.08, 1.0), flip=True)
_DEIT = _CROPS.model_copy(update={"auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25})

LOCALVIT_TINY = Config(
    preset="localvit-tiny",
    data=Data(image_size=224, val_images=50_000, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    budget=Budgets(at_most=1.3e9),
    supernet=SupernetTraining(augment=_CROPS),
    search=Search(racing_error=0),  # all candidates see all images
    retrain=Retraining(augment=_DEIT, repeats=3, clip_norm=None),
)

PRESETS = {config.preset: config for config in (DIGITS, LOCALVIT_TINY)}
