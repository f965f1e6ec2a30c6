"""The settings of an AutoFormer run, and the presets."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from nasx import Arch
from nasx.pipeline import presets
from nasx.pipeline.config import Budgets, Finetuning, Retraining, Search, SupernetTraining
from nasx.pipeline.vit import ViTModel, ViTRunConfig

from .model import AutoFormerConfig
from .space import (
    BASE_CHOICES,
    BASE_SUPERNET,
    SMALL_CHOICES,
    SMALL_SUPERNET,
    TINY_CHOICES,
    TINY_SUPERNET,
    AutoFormerSpace,
)


class Model(ViTModel):
    """What all networks share; the supernet may be wider than any network that is searched."""

    supernet_dim: PositiveInt | None = Field(None, description="width of the supernet; None: the widest searched")
    head_dim: PositiveInt = Field(64, description="channels of an attention head")
    max_offset: PositiveInt = Field(14, description="relative positions further apart than this count as this far")
    relative_positions: bool = Field(True, description="whether keys and values get relative positions")


class ParamBudgets(Budgets):
    """Bounds on the network, both inclusive; None leaves a side open. The paper bounds parameters."""

    cost: Literal["macs", "params"] = Field("params", description="what `at_least` and `at_most` bound")


class PaperFinetuning(Finetuning):
    """Fine-tuning as long and as slow as the paper's."""

    epochs: float = Field(40, ge=0, le=1e6, description="length of the fine-tuning, in epochs; 0: none")
    lr: PositiveFloat = Field(1e-5, description="highest learning rate")
    warmup_epochs: float = Field(5, ge=0, description="length of the linear warm-up, in epochs")


class Config(ViTRunConfig):
    """A run of the AutoFormer recipe."""

    vit_type = AutoFormerConfig
    model: Model = Field(Model(), description="sizes that all networks share")
    space: AutoFormerSpace = Field(AutoFormerSpace(), description="what is searched")
    budget: ParamBudgets = Field(ParamBudgets(), description="bounds on the network")
    finetune: PaperFinetuning = Field(
        PaperFinetuning(), description="fine-tuning of the best candidates from the supernet's weights"
    )

    @model_validator(mode="after")
    def _keeps_weights(self) -> "Config":
        if self.retrain.refit:
            raise ValueError(
                "retrain.refit must be false, because what AutoFormer finds keeps the supernet's weights, but got true"
            )
        return self

    @model_validator(mode="after")
    def _widest_is_inside(self) -> "Config":
        widest = max(self.space.embed_dim)
        if self.model.supernet_dim is not None and self.model.supernet_dim < widest:
            raise ValueError(
                f"model.supernet_dim must be at least the widest network's {widest}, which is in space.embed_dim, but "
                f"got {self.model.supernet_dim}"
            )
        return self

    def unused(self) -> dict[str, str]:
        """Return what is of BatchNorm, which AutoFormer's networks do not have, or of what is switched off."""
        found = super().unused()
        of_batch_norm = (
            *("supernet.batch_norm_group", "retrain.batch_norm_group", "search.recalibration_batches"),
            *("search.recalibration_batch_size", "search.recalibration_augment"),
        )
        found |= dict.fromkeys(of_batch_norm, "AutoFormer's networks have no BatchNorm")
        found["retrain.refit"] = "what AutoFormer finds keeps the supernet's weights"
        if not self.model.relative_positions:
            found["model.max_offset"] = "model.relative_positions is false"
        return found


DIGITS = Config(
    preset="digits",
    threads=1,
    data=presets.DIGITS,
    model=Model(patch_size=2, head_dim=8, max_offset=3, init_std=0.1),
    space=AutoFormerSpace(embed_dim=(24, 32, 40), depth=(3, 4, 5), num_heads=(2, 3, 4), mlp_ratio=(2, 3, 4)),
    budget=ParamBudgets(at_least=25e3, at_most=50e3),
    supernet=SupernetTraining(
        optimizer="adamw", epochs=60, batch_size=64, lr=3e-3, weight_decay=0.05, warmup_epochs=3, clip_norm=1.0
    ),
    search=Search(population=20, generations=6, parents=8, top_k=2, recalibration_batches=0),
    retrain=Retraining(epochs=60, batch_size=64, lr=3e-3, warmup_epochs=3, drop_path=0.0, mixup=0.0, cutmix=0.0),
    finetune=PaperFinetuning(epochs=5, lr=3e-4, warmup_epochs=0),
)

_SEARCH = Search(  # the paper's text; its code has the two probabilities the other way round
    mutation_probability={"embed_dim": 0.2, "block.count": 0.2, "block.*.*": 0.4},
    recalibration_batches=0,
    racing_error=0,
)


def _imagenet(name: str, choices: AutoFormerSpace, supernet: Arch, at_least: float, at_most: float) -> Config:
    return Config(
        preset=name,
        model=Model(supernet_dim=int(supernet["embed_dim"])),
        data=presets.imagenet(val_images=10_000),
        space=choices,
        budget=ParamBudgets(at_least=at_least, at_most=at_most),
        supernet=SupernetTraining(
            optimizer="adamw",
            epochs=500,
            batch_size=1024,
            lr=1e-3,
            warmup_lr=1e-6,
            final_lr=1e-5,
            weight_decay=0.05,
            warmup_epochs=20,
            schedule="epoch",
            drop_path=0.1,
            mixup=0.8,
            cutmix=1.0,
            repeats=3,
            augment=presets.DEIT_AUGMENT,
        ),
        search=_SEARCH,
        retrain=Retraining(
            epochs=500,
            warmup_epochs=20,
            schedule="epoch",
            clip_norm=None,
            repeats=3,
            augment=presets.DEIT_AUGMENT,
        ),
    )


AUTOFORMER_TINY = _imagenet("autoformer-tiny", TINY_CHOICES, TINY_SUPERNET, 5e6, 6.5e6)
AUTOFORMER_SMALL = _imagenet("autoformer-small", SMALL_CHOICES, SMALL_SUPERNET, 19e6, 24e6)
AUTOFORMER_BASE = _imagenet("autoformer-base", BASE_CHOICES, BASE_SUPERNET, 49e6, 55e6)

PRESETS = {config.preset: config for config in (DIGITS, AUTOFORMER_TINY, AUTOFORMER_SMALL, AUTOFORMER_BASE)}
