"""Everything a GLiT run can be told, as one typed value, and the presets."""

import os
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from recipes.glit.model import Frame
from recipes.glit.space import Axes

Method = Literal["hierarchical", "spos", "random"]
METHODS: tuple[Method, ...] = ("hierarchical", "spos", "random")

Rate = Annotated[float, Field(ge=0, lt=1)]
Number = Annotated[int | float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(_Section):
    """Which images: the embedded digits, or a folder in ImageNet's layout."""

    source: Literal["digits", "folder"] = "folder"
    image_size: PositiveInt = 224
    val_images: PositiveInt | None = Field(None, description="held out of train for the search; None: a fraction")
    val_fraction: Rate = 0.1


class Model(_Section):
    """The frame that all networks share, and how the supernet holds its candidates."""

    patch_size: PositiveInt = 16
    embed_dim: PositiveInt = 192
    num_heads: PositiveInt = 3
    init_std: PositiveFloat = 0.02
    sharing: Literal["separate", "entangled"] = "separate"


class SpaceAxes(_Section):
    """The axes of the search (paper, table 2) and where stage one holds the low-level ones."""

    blocks: PositiveInt = 12
    global_heads: tuple[int, ...] = (0, 1, 2, 3)
    kernel_size: tuple[PositiveInt, ...] = (17, 31, 45)
    expansion: tuple[PositiveInt, ...] = (1, 2, 4)
    qkv_ratio: tuple[Number, ...] = (0.5, 1.0, 2.0)
    mlp_ratio: tuple[Number, ...] = (2, 4, 6)
    held_kernel_size: PositiveInt = 31
    held_expansion: PositiveInt = 4
    held_qkv_ratio: Number = 1.0
    held_mlp_ratio: Number = 4

    @model_validator(mode="after")
    def _consistent(self) -> "SpaceAxes":
        for size in self.kernel_size:
            if size % 2 == 0:
                raise ValueError(f"kernel sizes must be odd, so that 'same' padding is symmetric, but got {size}")
        for name in ("kernel_size", "expansion", "qkv_ratio", "mlp_ratio"):
            held, offered = getattr(self, f"held_{name}"), getattr(self, name)
            if held not in offered:
                raise ValueError(f"held_{name} must be one of {name} {offered}, but got {held}")
        return self


class Budgets(_Section):
    """Bounds per stage, both inclusive; None leaves a side open."""

    cost: Literal["macs", "paper_macs"] = "macs"
    heads_at_most: PositiveFloat | None = None
    details_at_least: PositiveFloat | None = None
    details_at_most: PositiveFloat | None = None


class Augmentation(_Section):
    """What is drawn for each training image."""

    pad_crop: int = Field(0, ge=0, description="pixels of padding around each image for random crops")
    flip: bool = False
    erase: Rate = Field(0.0, description="probability of random erasing")


class SupernetTraining(_Section):
    """Training of each supernet: Nesterov SGD, cosine to 0, one uniformly sampled path a step (section 4.1).

    Small data sets learn faster with AdamW, whose weight decay spares vectors and positions.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    epochs: PositiveFloat = 100
    batch_size: PositiveInt = 1024
    lr: PositiveFloat = 0.2
    weight_decay: float = Field(1e-4, ge=0)
    warmup_epochs: float = Field(0, ge=0)
    label_smoothing: Rate = 0.1
    clip_norm: PositiveFloat | None = None
    augment: Augmentation = Augmentation()


class Search(_Section):
    """SPOS's evolution; a candidate is scored after its BatchNorm statistics were recomputed."""

    population: PositiveInt = 50
    generations: PositiveInt = 20
    parents: PositiveInt = 10
    mutation_probability: Annotated[float, Field(gt=0, le=1)] = 0.1
    top_k: PositiveInt = 5
    recalibration_batches: PositiveInt = 200
    recalibration_batch_size: PositiveInt = 128
    eval_batch_size: PositiveInt = 512


class Retraining(_Section):
    """Training from scratch, DeiT's recipe."""

    epochs: PositiveFloat = 300
    batch_size: PositiveInt = 1024
    lr: PositiveFloat = 1e-3
    final_lr: float = Field(1e-5, ge=0)
    warmup_lr: float = Field(1e-6, ge=0)
    warmup_epochs: float = Field(5, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    drop_path: Rate = 0.1
    label_smoothing: Rate = 0.1
    clip_norm: PositiveFloat | None = 1.0
    mixup: float = Field(0.8, ge=0)
    cutmix: float = Field(1.0, ge=0)
    augment: Augmentation = Augmentation()


class Config(_Section):
    """A run of the GLiT recipe."""

    preset: str
    seed: int = Field(0, ge=0)
    method: Method = "hierarchical"
    threads: PositiveInt = Field(2, description="CPU threads of supernet training and search; decides the last bits")
    data: Data = Data()
    model: Model = Model()
    space: SpaceAxes = SpaceAxes()
    budget: Budgets = Budgets()
    supernet: SupernetTraining = SupernetTraining()
    search: Search = Search()
    retrain: Retraining = Retraining()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        for heads in self.space.global_heads:
            if not 0 <= heads <= self.model.num_heads:
                raise ValueError(f"global_heads must lie in 0..{self.model.num_heads}, but got {heads}")
        Frame(
            image_size=self.data.image_size,
            patch_size=self.model.patch_size,
            embed_dim=self.model.embed_dim,
            num_heads=self.model.num_heads,
        )
        return self

    def axes(self) -> Axes:
        """Return the axes of the search as the space functions take them."""
        return Axes(num_heads=self.model.num_heads, **self.space.model_dump())

    def frame(self, *, in_channels: int, num_classes: int) -> Frame:
        """Return the frame of this run's networks for a data set."""
        return Frame(
            image_size=self.data.image_size,
            patch_size=self.model.patch_size,
            in_channels=in_channels,
            num_classes=num_classes,
            embed_dim=self.model.embed_dim,
            num_heads=self.model.num_heads,
        )


class Machine(BaseSettings):
    """What belongs to the machine and not to the run, from the environment: NASX_DEVICE, NASX_PROCESSES, ..."""

    model_config = SettingsConfigDict(env_prefix="NASX_", frozen=True)

    device: str = Field("auto", description="a torch device; auto: CUDA where there is one")
    processes: int = Field(0, ge=0, description="networks trained side by side; 0: one per core on CPU, else 1")

    def processes_for(self, device: torch.device) -> int:
        """Return how many networks to train side by side on a device."""
        return self.processes or ((os.cpu_count() or 1) if device.type == "cpu" else 1)


DIGITS = Config(
    preset="digits",
    threads=1,  # a second thread gains nothing on networks this small
    data=Data(source="digits", image_size=8, val_fraction=0.2),
    model=Model(patch_size=2, embed_dim=36, init_std=0.2),
    space=SpaceAxes(blocks=4, kernel_size=(3, 5, 9), held_kernel_size=5),
    budget=Budgets(heads_at_most=1.35e6, details_at_least=0.9e6, details_at_most=1.35e6),
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

CIFAR10 = Config(
    preset="cifar10",
    data=Data(image_size=32, val_images=5000),
    model=Model(patch_size=4, init_std=0.05),
    space=SpaceAxes(blocks=6, kernel_size=(5, 9, 17), held_kernel_size=9),
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

PRESETS = {config.preset: config for config in (DIGITS, CIFAR10)}
