"""Everything a LocalViT run can be told, as one typed value, and the presets."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from nasx.pipeline.config import Augmentation, Data, Retraining, RunConfig, Search, Section, SupernetTraining
from recipes.localvit.model import Frame
from recipes.localvit.space import Axes


class Model(Section):
    """The frame that all networks share."""

    patch_size: PositiveInt = 16
    embed_dim: PositiveInt = 192
    num_heads: PositiveInt = 4
    init_std: PositiveFloat = 0.02


class SpaceAxes(Section):
    """What is searched in the feed-forward of each block."""

    blocks: PositiveInt = 12
    depthwise: tuple[bool, ...] = (False, True)
    mlp_ratio: tuple[PositiveFloat, ...] = (2, 4, 6)
    kernel_size: tuple[PositiveInt, ...] = (3, 5, 7)
    activation: tuple[Literal["relu6", "hardswish"], ...] = ("relu6", "hardswish")
    channel_attention: tuple[Literal["none", "se", "eca"], ...] = ("none", "se", "eca")
    reduction: tuple[PositiveInt, ...] = (48, 96, 192)
    gate: tuple[Literal["sigmoid", "hardsigmoid"], ...] = ("sigmoid", "hardsigmoid")

    @model_validator(mode="after")
    def _consistent(self) -> "SpaceAxes":
        for size in self.kernel_size:
            if size % 2 == 0:
                raise ValueError(f"kernel sizes must be odd, so that 'same' padding is symmetric, but got {size}")
        return self


class Budgets(Section):
    """Bounds on the network, both inclusive; None leaves a side open."""

    cost: Literal["macs", "params"] = "macs"
    at_least: PositiveFloat | None = None
    at_most: PositiveFloat | None = None


class Config(RunConfig):
    """A run of the LocalViT recipe."""

    model: Model = Model()
    space: SpaceAxes = SpaceAxes()
    budget: Budgets = Budgets()

    def axes(self) -> Axes:
        """Return the axes of the search as the space functions take them."""
        return Axes(**self.space.model_dump())

    def frame(self, *, in_channels: int, num_classes: int) -> Frame:
        """Return the frame of this run's networks for a data set."""
        model = self.model.model_dump(exclude={"init_std"})
        return Frame(image_size=self.data.image_size, in_channels=in_channels, num_classes=num_classes, **model)


DIGITS = Config(
    preset="digits",
    threads=1,
    data=Data(source="digits", image_size=8, val_fraction=0.2),
    model=Model(patch_size=2, embed_dim=32, num_heads=4, init_std=0.2),
    space=SpaceAxes(blocks=4, mlp_ratio=(2, 3, 4), kernel_size=(3, 5), reduction=(4, 8)),
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

_DEIT = Augmentation(resized_crop=(0.08, 1.0), flip=True, auto_augment="rand-m9-mstd0.5-inc1", erase=0.25)

LOCALVIT_TINY = Config(
    preset="localvit-tiny",
    data=Data(image_size=224, val_images=50_000),
    budget=Budgets(at_most=1.3e9),
    retrain=Retraining(augment=_DEIT, repeats=3, clip_norm=None),
)

PRESETS = {config.preset: config for config in (DIGITS, LOCALVIT_TINY)}
