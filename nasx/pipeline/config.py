"""What every recipe's run can be told: the sections of its configuration, as typed values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from nasx.ranking import FEWEST

Rate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A part of a configuration: immutable, without unknown fields or infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """Which images: the embedded digits, or a folder in ImageNet's layout."""

    source: Literal["digits", "folder"] = "folder"
    image_size: PositiveInt = 224
    val_images: PositiveInt | None = Field(None, description="held out of train for the search; None: a fraction")
    val_fraction: Rate = 0.1
    mean: tuple[float, ...] | None = Field(None, description="of each channel of images in 0..1; None: measured")
    std: tuple[PositiveFloat, ...] | None = Field(None, description="the same of the standard deviation")
    leaks: Literal["refuse", "drop", "allow"] = Field("refuse", description="what to do with copies of test images")

    @model_validator(mode="after")
    def _consistent(self) -> "Data":
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError(f"mean and std need a value for each channel, both or neither: {self.mean}, {self.std}")
        return self


class Augmentation(Section):
    """What is drawn for each training image (`nasx.data.Augment`); the last three only of photographs."""

    pad_crop: int = Field(0, ge=0, description="pixels of padding around each image for random crops")
    flip: bool = False
    erase: Rate = Field(0.0, description="probability of random erasing")
    rotate: float = Field(0.0, ge=0, le=180, description="degrees either way")
    zoom: Rate = 0.0
    resized_crop: tuple[Share, Share] | None = Field(None, description="share of the area, such as [0.08, 1]")
    auto_augment: str | None = Field(None, description="timm's spelling, such as rand-m9-mstd0.5-inc1")
    color_jitter: float = Field(0.0, ge=0)


class SupernetTraining(Section):
    """Training of a supernet: Nesterov SGD, cosine to 0, one uniformly sampled path a step (SPOS; GLiT, section 4.1).

    Small data sets learn faster with AdamW, whose weight decay spares vectors and positions. `paths` says which
    networks a step trains (`nasx.train`): `uniform` draws every choice, `architectures` whole networks, `budget` those
    that are searched, `stratified` from `strata` bins of their cost in turn, `sandwich` the largest, which teaches the
    others, the smallest and two more, `fair` every option of every choice.
    """

    paths: Literal["uniform", "architectures", "budget", "stratified", "sandwich", "fair"] = "uniform"
    strata: PositiveInt = Field(8, description="bins of the cost; only of stratified")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    epochs: PositiveFloat = 100
    batch_size: PositiveInt = 1024
    lr: PositiveFloat = 0.2
    weight_decay: float = Field(1e-4, ge=0)
    warmup_epochs: float = Field(0, ge=0)
    label_smoothing: Rate = 0.1
    drop_path: Rate = 0.0
    clip_norm: PositiveFloat | None = None
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    augment: Augmentation = Augmentation()


class Search(Section):
    """SPOS's evolution; a candidate is scored after its BatchNorm statistics were recomputed.

    With 1,000 validation images and more, the candidates of a generation race (`nasx.search.race`).
    """

    population: PositiveInt = 50
    generations: PositiveInt = 20
    parents: PositiveInt = 10
    mutation_probability: Share | dict[str, Share] = Field(
        0.1, description='of each gene, or by patterns of names, such as {"embed_dim": 0.2, "block.*.*": 0.4}'
    )
    top_k: PositiveInt = 5
    recalibration_batches: int = Field(200, ge=0, description="0 for networks without BatchNorm")
    recalibration_batch_size: PositiveInt = 128
    eval_batch_size: PositiveInt = 512
    racing_error: Rate = Field(
        0.05,
        description="how likely racing may cost the best of a generation 0.1 points; 0 scores all on all images",
    )


class Trust(Section):
    """Whether a supernet's ranking deserves belief: how many networks are trained alone to find out, 0 for none."""

    n: int = Field(0, ge=0, description="networks trained alone, spread over the budget; at least 5, 10 for intervals")

    @field_validator("n")
    @classmethod
    def _enough(cls, n: int) -> int:
        if 0 < n < FEWEST:
            raise ValueError(f"a ranking is judged by at least {FEWEST} networks; 10 and more give honest intervals")
        return n


class Retraining(Section):
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
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of an average of the weights a step; the better of both on validation is kept"
    )
    repeats: PositiveInt = Field(1, description="repeated augmentation: copies of an image in a row of batches")
    augment: Augmentation = Augmentation()


class RunConfig(Section):
    """What the runs of all recipes have in common; a recipe's own configuration adds its sections."""

    preset: str
    seed: int = Field(0, ge=0)
    threads: PositiveInt = Field(2, description="CPU threads of supernet training and search; decides the last bits")
    data: Data = Data()
    supernet: SupernetTraining = SupernetTraining()
    search: Search = Search()
    trust: Trust = Trust()
    retrain: Retraining = Retraining()

    @property
    def search_method(self) -> str | None:
        """Which of a recipe's ways to search, where it has several."""
        return None
