"""The settings of a GLiT run as one typed value, and the presets."""

import math
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from nasx.pipeline import presets
from nasx.pipeline.config import (
    Amount,
    Augmentation,
    CostBounds,
    Data,
    Finetuning,
    Retraining,
    Search,
    SupernetTraining,
)
from nasx.pipeline.image_sources import FolderFacts
from nasx.pipeline.settle import fitting_batch_size, fitting_epochs
from nasx.pipeline.vit import HeadedModel, ViTRunConfig

from .cost import Macs
from .model import GLiTConfig
from .space import GLiTSpace, SpaceConfig, same_heads
from .variant import VARIANTS, Variant

Method = Literal["hierarchical", "spos", "random"]


class Model(HeadedModel):
    """The sizes that all networks share, and how the supernet holds its candidates."""

    sharing: Literal["separate", "entangled"] = Field(
        "entangled", description="whether the supernet keeps weights per candidate, or slices of one tensor"
    )
    variant: Literal["official", "paper"] = Field("official", description="blocks as the released code, or the text")


class Budgets(CostBounds):
    """Bounds per stage, both inclusive; None leaves a side open."""

    cost: Literal["macs", "paper_macs"] = Field(
        "macs", description="how MACs are counted: exactly, or by the paper's formula"
    )
    heads_at_most: Amount | None = Field(None, description="most MACs of a network in stage one")
    details_at_least: Amount | None = Field(None, description="fewest MACs of a network in stage two")
    details_at_most: Amount | None = Field(None, description="most MACs of a network in stage two")

    @model_validator(mode="after")
    def _counts_of_macs(self) -> "Budgets":
        for name in ("heads_at_most", "details_at_most"):
            bound = getattr(self, name)
            if isinstance(bound, int | float) and bound < 1000:  # no network is that small
                raise ValueError(
                    f"budget.{name} is a plain count of MACs, but got {bound:g}; write {bound:g}e9 or {bound:g}G"
                )
        return self


class Config(ViTRunConfig):
    """A run of the GLiT recipe."""

    vit_type = GLiTConfig
    method: Method = Field(
        "hierarchical",
        description="hierarchical: heads, then details; spos: all at once; random: networks drawn from the budget",
    )
    model: Model = Field(Model(), description="sizes that all networks share")
    space: SpaceConfig = Field(SpaceConfig(), description="what is searched")
    budget: Budgets = Field(Budgets(), description="bounds on the network, for each stage")

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        model = self.model
        if not set(self.space.global_heads) <= set(range(model.num_heads + 1)):
            third = model.num_heads // 3 if model.num_heads % 3 == 0 else 1
            raise ValueError(
                f"space.global_heads must lie in 0..{model.num_heads}, which is model.num_heads, but got "
                f"{list(self.space.global_heads)}; write {list(range(0, model.num_heads + 1, third))}"
            )
        if self.data.image_size % model.patch_size:
            return self  # refused with the fields of all recipes
        grid, patches = self.vit().grid, self.vit().patches
        reach = 2 * grid - 1
        if self.space.locality == "conv2d" and max(self.space.kernel_size) > reach:
            raise ValueError(
                f"space.kernel_size must be at most {reach}, which reaches all of {grid} x {grid} patches, but got "
                f"{max(self.space.kernel_size)}; write space.kernel_size=[3,5,7] and space.held_kernel_size=5, as in "
                "the paper"
            )
        for window in self.space.window if self.space.locality == "window" else ():
            if patches % window:
                raise ValueError(
                    f"space.window must divide the {patches} patches, but got {window}; write "
                    f"{[size for size in range(2, patches) if patches % size == 0]}"
                )
        return self

    def unused(self) -> dict[str, str]:
        """Return what has no effect with this method and this kind of locality."""
        found = super().unused()
        if self.method != "hierarchical":
            found["budget.heads_at_most"] = f"method is {self.method}, which has no level of heads"
        if self.method == "random":
            found["finetune.epochs"] = "method is random, which trains no supernet"
        of_others = ("kernel_size", "expansion") if self.space.locality == "window" else ("window",)
        why = f"space.locality is {self.space.locality}"
        return found | {f"space.{prefix}{name}": why for name in of_others for prefix in ("", "held_")}

    @property
    def run_words(self) -> tuple[str, ...]:
        """The method, which names runs and stands in their reports."""
        return (self.method,)

    def choices(self) -> GLiTSpace:
        """Return the choices of the search as the space functions take them."""
        return GLiTSpace(num_heads=self.model.num_heads, **self.space.model_dump())

    def variant(self) -> Variant:
        """Return how blocks compute: the named variant with this run's locality."""
        return replace(VARIANTS[self.model.variant], locality=self.space.locality)

    def vit(self, *, in_channels: int = 3, num_classes: int = 1000, **more: Any) -> GLiTConfig:
        """Return the ViT config of this run's networks for a data set; the defaults are ImageNet's."""
        variant = self.variant()
        vit: GLiTConfig = super().vit(in_channels=in_channels, num_classes=num_classes, variant=variant, **more)
        return vit


DIGITS = Config(
    **presets.DIGITS_RUN,
    model=Model(patch_size=2, embed_dim=36, init_std=0.2),
    space=SpaceConfig(blocks=4, kernel_size=(3, 5, 9), held_kernel_size=5),
    budget=Budgets(heads_at_most=1.35e6, details_at_least=0.9e6, details_at_most=1.35e6),
)

CIFAR10 = Config(
    preset="cifar10",
    data=Data(image_size=32, val_images=5000),
    model=Model(patch_size=4, init_std=0.05),
    space=SpaceConfig(blocks=6, kernel_size=(5, 9, 17), held_kernel_size=9),
    budget=Budgets(heads_at_most=2.2e8, details_at_least=1.5e8, details_at_most=2.2e8),
    supernet=SupernetTraining(
        optimizer="adamw",
        epochs=100,
        batch_size=256,
        lr=2e-3,
        weight_decay=0.05,
        warmup_epochs=2,
        clip_norm=1.0,
        augment=Augmentation(pad_crop=4, flip=True),
    ),
    search=Search(recalibration_batches=20, recalibration_batch_size=256),
    retrain=Retraining(epochs=200, batch_size=256, lr=1e-3, augment=Augmentation(pad_crop=4, flip=True, erase=0.25)),
)


def imagenet(
    preset: str, *, embed_dim: int, num_heads: int, global_heads: tuple[int, ...], paper_macs: float
) -> Config:
    """Return the paper's settings (section 4.1) for one of its sizes, inside the size's MACs by the paper's count.

    Where the paper refers to SPOS or DeiT, the values are theirs. Stage one, whose details are held at large ones, and
    the last stage have the same bound, from above alone: the paper states no other.
    """
    batch_size = 1024
    return Config(
        preset=preset,
        data=presets.imagenet(),
        model=Model(sharing="separate", embed_dim=embed_dim, num_heads=num_heads, init_std=0.02),  # SPOS's
        space=SpaceConfig(global_heads=global_heads),
        budget=Budgets(cost="paper_macs", heads_at_most=paper_macs, details_at_most=paper_macs),
        supernet=SupernetTraining(
            optimizer="sgd",
            decay="matrices",  # SPOS's
            epochs=100,
            batch_size=batch_size,
            lr=0.2,
            weight_decay=1e-4,
            label_smoothing=0.1,
            batch_norm_group=256,  # a process of the released code has as many
            augment=presets.CROPS,
        ),
        search=Search(
            population=50,
            generations=20,
            parents=10,
            top_k=5,
            recalibration_batches=200,
            recalibration_batch_size=128,
            racing_error=0,  # all candidates see all images
        ),
        retrain=Retraining(
            epochs=300,
            batch_size=batch_size,
            lr=5e-4 * batch_size / 512,
            final_lr=1e-5,
            warmup_lr=1e-6,
            warmup_epochs=5,
            weight_decay=0.05,
            drop_path=0.1,
            label_smoothing=0.1,
            clip_norm=1.0,
            mixup=0.8,
            cutmix=1.0,
            ema=0.99996,
            repeats=3,
            schedule="epoch",
            mix_group=256,  # four processes, each with a draw of its own
            batch_norm_group=256,
            refit=True,  # the released training knows no validation images
            augment=presets.DEIT_AUGMENT,
        ),
    )


TINY = imagenet("glit-tiny", embed_dim=192, num_heads=3, global_heads=(0, 1, 2, 3), paper_macs=1.4e9)
SMALL = imagenet("glit-small", embed_dim=384, num_heads=6, global_heads=(0, 2, 4, 6), paper_macs=4.4e9)
BASE = imagenet("glit-base", embed_dim=768, num_heads=12, global_heads=(0, 4, 8, 12), paper_macs=17.0e9)


def fit(facts: FolderFacts) -> Config:
    """Return settings that suit an image folder: its number of images, and their size, or the one that is asked for.

    The budget is a share of what the DeiT-shaped network costs.
    """
    large = facts.train >= 20_000
    size = facts.image_size or _fitting_size(facts)
    patch_size = _fitting_patch_size(size, 14 if size >= 224 else 8)
    kernels = (17, 31, 45) if size >= 224 else (5, 9, 17)
    val_fraction = 0.2 if facts.train < 2_000 else 0.1
    train = max(1, facts.train - round(val_fraction * facts.train))
    batch_size = fitting_batch_size(train)
    model = Model(patch_size=patch_size, embed_dim=192 if large else 96, init_std=0.05)
    space = SpaceConfig(blocks=12 if large else 6, kernel_size=kernels, held_kernel_size=kernels[1])
    augment = Augmentation(pad_crop=max(1, size // 8), flip=True)
    config = Config(
        preset="folder",
        data=Data(image_size=size, val_fraction=val_fraction),
        model=model,
        space=space,
        supernet=SupernetTraining(
            optimizer="adamw",
            epochs=fitting_epochs(train, batch_size, 3000),
            batch_size=batch_size,
            lr=2e-3,
            weight_decay=0.05,
            warmup_epochs=2,
            clip_norm=1.0,
            augment=augment,
        ),
        search=Search(
            population=20,
            generations=6,
            parents=8,
            top_k=2,
            recalibration_batches=max(1, min(20, train // batch_size)),
            recalibration_batch_size=batch_size,
        ),
        retrain=Retraining(
            epochs=fitting_epochs(train, batch_size, 3000),
            batch_size=batch_size,
            lr=1e-3,
            warmup_epochs=2,
            drop_path=0.0,
            mixup=0.8 if large else 0.0,
            cutmix=1.0 if large else 0.0,
            augment=augment.model_copy(update={"erase": 0.25}),
        ),
    )
    if not large:  # the supernet's weights generalise better on few images (docs/evidence.md)
        epochs, lr = math.ceil(config.retrain.epochs / 10), config.retrain.lr / 10
        config = config.model_copy(update={"finetune": Finetuning(epochs=epochs, lr=lr)})
    deit = Macs(config.vit(num_classes=facts.classes))(same_heads(model.num_heads, config.choices()))
    budget = Budgets(
        heads_at_most=round(1.2 * deit), details_at_least=round(0.8 * deit), details_at_most=round(1.2 * deit)
    )
    return config.model_copy(update={"budget": budget})


def _fitting_size(facts: FolderFacts) -> int:
    """Return the size that images are read at: no larger than they are, and than so few can be learned from."""
    affordable = 64 if facts.train < 5_000 else 128 if facts.train < 100_000 else 224
    sizes = [size for size in (32, 64, 128, 224) if size <= max(32, facts.shorter_side)]
    return max(size for size in sizes if size <= affordable)


def _fitting_patch_size(image_size: int, patches: int) -> int:
    """Return the largest size of patches that divide an image into so many along a side, or up to twice as many."""
    largest = max(1, image_size // patches)
    found = max(size for size in range(1, largest + 1) if image_size % size == 0)
    if 2 * found < largest:
        raise ValueError(
            f"data.image_size={image_size} cannot be divided into patches of {math.ceil(largest / 2)} to {largest} "
            f"pixels; write data.image_size={image_size // largest * largest}"
        )
    return found


PRESETS = {config.preset: config for config in (DIGITS, CIFAR10, TINY, SMALL, BASE)}
