"""The settings of a run, as typed values in sections; recipes add sections of their own."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from nasx.cost import Budget, Cost, parse_amount
from nasx.ranking import FEWEST

Rate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]

SEARCH_METHODS = ("evolution", "random", "pareto", "local")
SEARCHER_NAMES = ("ask", "tell", "done", "best")


def _readable_amount(bound: str) -> str:
    parse_amount(bound)
    return bound


Amount = PositiveFloat | Annotated[str, AfterValidator(_readable_amount)]
"""A number, or a text such as "1.4G", "5.7M" or "60%" of the largest network."""


def _known_method(method: Any) -> Any:
    if isinstance(method, str):
        known = method in SEARCH_METHODS
    else:
        known = callable(method) or all(hasattr(method, name) for name in SEARCHER_NAMES)
    if not known:
        raise ValueError(
            f"search.method must be one of {', '.join(SEARCH_METHODS)}, or from Python a searcher or a function that "
            "makes one"
        )
    return method


def _method_name(method: Any) -> str:
    named = method if hasattr(method, "__qualname__") else type(method)
    return method if isinstance(method, str) else f"{named.__module__}.{named.__qualname__}"


SearchMethod = Annotated[Any, AfterValidator(_known_method), PlainSerializer(_method_name)]
"""The name of a method; or a searcher that passes `nasx.testing.SearcherContract`; or what makes one.

What makes one is called as `method(architectures, seed=...)`.
"""


class Section(BaseModel):
    """A part of a configuration: immutable, without unknown fields or infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """The images of a run: the embedded digits, a folder in ImageNet's layout, tar shards, or a Hugging Face folder."""

    source: Literal["digits", "folder", "shards", "hf"] = "folder"
    image_size: PositiveInt = 224
    channels: Literal[1, 3] | None = Field(None, description="grey or colour; None: as the images are")
    class_order: Literal["text", "number"] = Field("text", description="of class folders: by text, or 2 before 10")
    val_images: PositiveInt | None = Field(None, description="held out of train for the search; None: a fraction")
    val_fraction: Rate = 0.1
    mean: tuple[float, ...] | None = Field(None, description="of each channel of images in 0..1; None: measured")
    std: tuple[PositiveFloat, ...] | None = Field(None, description="the same of the standard deviation")
    leaks: Literal["refuse", "drop", "allow"] = Field("refuse", description="what to do with copies of test images")

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> "Data":
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError(
                f"data.mean and data.std need a value for each channel, both or neither, but got {self.mean} and "
                f"{self.std}"
            )
        return self

    @model_validator(mode="after")
    def _order_of_folders(self) -> "Data":
        if self.class_order != "text" and self.source != "folder":
            raise ValueError(
                f"data.class_order={self.class_order} has an effect on class folders only, but data.source is "
                f"{self.source}; remove it"
            )
        return self

    @property
    def expected_channels(self) -> int:
        """Channels of an image, where none has been read: those that are set, else what the source mostly has."""
        return self.channels or (1 if self.source == "digits" else 3)


class Augmentation(Section):
    """Random changes of each training image (`nasx.data.Augment`); the last three are for photographs only."""

    pad_crop: int = Field(0, ge=0, description="pixels of padding around each image for random crops")
    flip: bool = False
    erase: Rate = Field(0.0, description="probability of random erasing")
    rotate: float = Field(0.0, ge=0, le=180, description="degrees either way")
    zoom: Rate = 0.0
    resized_crop: tuple[Share, Share] | None = Field(None, description="share of the area, such as [0.08, 1]")
    auto_augment: str | None = Field(None, description="timm's spelling, such as rand-m9-mstd0.5-inc1")
    color_jitter: float = Field(0.0, ge=0)

    def crops_and_flips(self) -> "Augmentation":
        """Return the same without erasing, rotation, zoom and RandAugment: what SPOS recalibrates with."""
        return self.model_copy(update={"erase": 0.0, "rotate": 0.0, "zoom": 0.0, "auto_augment": None})


class Training(Section):
    """What the trainings of a supernet and of single networks have in common."""

    section: ClassVar[str]

    epochs: PositiveFloat
    batch_size: PositiveInt = 1024
    lr: PositiveFloat
    final_lr: float = Field(0.0, ge=0)
    warmup_lr: float = Field(0.0, ge=0)
    warmup_epochs: float = Field(0, ge=0)
    schedule: Literal["step", "epoch"] = Field(
        "step",
        description="a new rate at every step, the cosine after the warm-up; epoch: at every epoch, the warm-up inside "
        "the cosine, as timm has it",
    )
    weight_decay: float = Field(0.0, ge=0)
    drop_path: Rate = 0.0
    label_smoothing: Rate = 0.1
    clip_norm: PositiveFloat | None = None
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    mix_group: PositiveInt | None = Field(None, description="samples that share one draw of mixup; None: the batch")
    repeats: PositiveInt = Field(1, description="repeated augmentation: copies of a sample in a row of batches")
    batch_norm_group: PositiveInt | None = Field(
        None, description="samples whose BatchNorm statistics are computed together; None: the batch"
    )
    teacher: str | None = Field(
        None, description="timm:NAME=WEIGHTS.safetensors, or the folder of an exported network; None: no teacher"
    )
    distillation: Literal["soft", "hard"] = Field("soft", description="of the teacher's probabilities, or its choice")
    distillation_weight: Share = Field(0.5, description="of the loss, the share that the teacher gives")
    distillation_temperature: PositiveFloat = Field(1.0, description="of soft distillation")
    augment: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _consistent(self) -> "Training":
        at = self.section
        if "warmup_epochs" in self.model_fields_set and 0 < self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"{at}.warmup_epochs must be less than {at}.epochs, or the rate only rises, but got "
                f"{self.warmup_epochs:g} and {self.epochs:g}"
            )
        for name, size in (("mix_group", self.mix_group), ("batch_norm_group", self.batch_norm_group)):
            if size is not None and self.batch_size % size:
                raise ValueError(
                    f"{at}.{name} must divide {at}.batch_size, but got {size} and {self.batch_size}; write a divisor"
                )
        if self.distillation == "hard" and self.distillation_temperature != 1:
            raise ValueError(
                f"{at}.distillation_temperature has no effect on hard distillation, but got "
                f"{self.distillation_temperature:g}; leave it out"
            )
        return self

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed, so that targets are probabilities."""
        return bool(self.mixup or self.cutmix)

    @property
    def loss_smoothing(self) -> float:
        """The label smoothing of the loss; none where mixed targets are smoothed already."""
        return 0.0 if self.mixes else self.label_smoothing

    @property
    def target_smoothing(self) -> float:
        """The label smoothing of mixed targets."""
        return self.label_smoothing if self.mixes else 0.0


class SupernetTraining(Training):
    """Training of a supernet: Nesterov SGD, cosine to 0, one uniformly sampled path a step (SPOS; GLiT, section 4.1).

    Small data sets learn faster with AdamW, whose weight decay spares vectors and positions. `paths` says which
    networks a step trains (`nasx.train`): `uniform` draws every choice, `architectures` whole networks, `budget` those
    that are searched, `stratified` from `strata` bins of their cost in turn, `sandwich` the largest, which teaches the
    others, the smallest and two more, `fair` every option of every choice.
    """

    section = "supernet"

    paths: Literal["uniform", "architectures", "budget", "stratified", "sandwich", "fair"] = "uniform"
    strata: PositiveInt = Field(8, description="bins of the cost; of stratified only")
    reduction: Literal["mean", "sum"] = Field("mean", description="of the gradients of a step's paths")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    decay: Literal["all", "matrices"] = Field(
        "all", description="which parameters SGD's weight decay reaches; SPOS's: those of more than one dimension"
    )
    epochs: PositiveFloat = 100
    lr: PositiveFloat = 0.2
    weight_decay: float = Field(1e-4, ge=0)


class Search(Section):
    """The search; a candidate is scored after its BatchNorm statistics were recomputed.

    `evolution` is SPOS's, `random` draws uniformly, `pareto` is NSGA-II over score and cost, and `local` looks at the
    neighbours of the best. With 1,000 validation samples and more, the candidates of a generation race
    (`nasx.search.race`).
    """

    method: SearchMethod = "evolution"
    population: PositiveInt = 50
    generations: PositiveInt = 20
    parents: PositiveInt = 10
    mutation_probability: Share | dict[str, Share] = Field(
        0.1, description='of each gene, or by patterns of names, such as {"embed_dim": 0.2, "block.*.*": 0.4}'
    )
    top_k: PositiveInt = 5
    recalibration_batches: int = Field(200, ge=0, description="0 for networks without BatchNorm")
    recalibration_batch_size: PositiveInt = 128
    recalibration_augment: Augmentation | None = Field(
        None, description="of the images that statistics are recomputed from; None: the supernet's crops and flips"
    )
    eval_batch_size: PositiveInt = 512
    racing_error: Rate = Field(
        0.05,
        description="how likely racing may cost the best of a generation 0.1 points; 0 scores all on all images",
    )


class Trust(Section):
    """How far a supernet's ranking can be trusted: the number of networks trained alone to find out, 0 for none."""

    n: int = Field(0, ge=0, description="networks trained alone, spread over the budget; at least 5, 10 for intervals")
    seeds: PositiveInt = Field(1, description="trainings of each; 2 tell how well real trainings agree")

    @field_validator("n")
    @classmethod
    def _enough(cls, n: int) -> int:
        if 0 < n < FEWEST:
            raise ValueError(
                f"trust.n must be at least {FEWEST} to judge a ranking, 10 and more give honest intervals, but got {n}"
            )
        return n


class Retraining(Training):
    """Training from scratch, DeiT's recipe.

    `top` trains the `search.top_k` best of a search; `halving` starts with `start` of them and lets the better half
    go on, until as many are left.
    """

    section = "retrain"

    method: Literal["top", "halving"] = "top"
    start: PositiveInt = Field(16, description="networks that halving starts with")
    epochs: PositiveFloat = 300
    lr: PositiveFloat = 1e-3
    final_lr: float = Field(1e-5, ge=0)
    warmup_lr: float = Field(1e-6, ge=0)
    warmup_epochs: float = Field(5, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    drop_path: Rate = 0.1
    clip_norm: PositiveFloat | None = 1.0
    mixup: float = Field(0.8, ge=0)
    cutmix: float = Field(1.0, ge=0)
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="decay of an average of the weights")
    keep: Literal["ema", "raw", "better"] = Field(
        "better", description="which weights are kept where there is an average: better on validation by default"
    )
    refit: bool = Field(False, description="train what was chosen again, on training and validation samples together")
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="run blocks through torch.compile; auto: on CUDA, where a training is long enough to gain from it",
    )


class CostBounds(Section):
    """Bounds on further costs, beside the one that a budget is about; None leaves a cost open."""

    macs_at_most: Amount | None = None
    params_at_most: Amount | None = None
    latency: str | None = Field(None, description="a table that the command `latency` has written")
    latency_at_most: Amount | None = Field(None, description="microseconds of a batch, by that table")

    @model_validator(mode="after")
    def _table_and_bound(self) -> "CostBounds":
        if (self.latency is None) != (self.latency_at_most is None):
            raise ValueError(
                f"budget.latency and budget.latency_at_most belong together, but got {self.latency!r} and "
                f"{self.latency_at_most!r}; give both or neither"
            )
        return self

    def further(self, macs: Cost, params: Cost) -> list[Budget]:
        """Return the budgets that these bounds are; a ValueError says that a table cannot be read."""
        found = [
            Budget(cost, at_most=bound, names=("", f"budget.{name}"))
            for name, cost, bound in (
                ("macs_at_most", macs, self.macs_at_most),
                ("params_at_most", params, self.params_at_most),
            )
            if bound is not None
        ]
        if self.latency is not None:
            from nasx.latency import Latency

            table = Latency.load(self.latency, measured_elsewhere=True)  # measured where the network is to run
            found.append(Budget(table, at_most=self.latency_at_most, names=("", "budget.latency_at_most")))
        return found


class Budgets(CostBounds):
    """Bounds on the network, both inclusive; None leaves a side open."""

    cost: Literal["macs", "params"] = "macs"
    at_least: Amount | None = None
    at_most: Amount | None = None

    def budgets(self, macs: Cost, params: Cost) -> list[Budget]:
        """Return the budgets: that of the chosen cost first, then those of others."""
        chosen = macs if self.cost == "macs" else params
        named = ("budget.at_least", "budget.at_most")
        return [Budget(chosen, self.at_least, self.at_most, names=named), *self.further(macs, params)]


class RunConfig(Section):
    """What the runs of all recipes have in common; a recipe's own configuration adds its sections."""

    preset: str = "custom"
    seed: int = Field(0, ge=0)
    threads: PositiveInt = Field(2, description="CPU threads of supernet training and search; decides the last bits")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="what networks compute in; auto: bfloat16 on CUDA devices that have it, else float32"
    )
    data: Data = Data()
    supernet: SupernetTraining = SupernetTraining()
    search: Search = Search()
    trust: Trust = Trust()
    retrain: Retraining = Retraining()

    @property
    def run_words(self) -> tuple[str, ...]:
        """Words that tell this run from others of its preset, for its default directory."""
        return ()
