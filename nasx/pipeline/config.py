"""The settings of a run, as typed values in sections; recipes add sections of their own."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from nasx.cli import validation_message
from nasx.cost import Budget, Cost, parse_amount
from nasx.ranking import FEWEST

Epochs = Annotated[float, Field(gt=0, le=1e6)]
"""The length of a training; longer ones are slips of the keyboard."""

Rate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]

SEARCH_METHODS = ("evolution", "random", "pareto", "local")
SEARCHER_NAMES = ("ask", "tell", "done")


def _readable_amount(bound: str) -> str:
    parse_amount(bound)
    return bound


Amount = PositiveFloat | Annotated[str, AfterValidator(_readable_amount)]
"""A number, or a text such as "1.4G", "5.7M" or "60%" of the largest network."""


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError(f"must be odd, such as {size - 1} or {size + 1}, so that 'same' padding is symmetric")
    return size


OddSize = Annotated[PositiveInt, AfterValidator(_odd)]
"""The size of a kernel that keeps the size of what it is applied to."""


def _known_method(method: Any) -> Any:
    if isinstance(method, str):
        wrong = "" if method in SEARCH_METHODS else f"got {method!r}"
    else:
        missing = [] if callable(method) else [name for name in SEARCHER_NAMES if not hasattr(method, name)]
        wrong = f"this {type(method).__name__} has no `{'`, no `'.join(missing)}`" if missing else ""
    if wrong:
        raise ValueError(
            f"search.method must be one of {', '.join(SEARCH_METHODS)}, or from Python a searcher (an object with "
            f"{', '.join(SEARCHER_NAMES)}) or a function that returns one, but {wrong}"
        )
    return method


def _method_name(method: Any) -> str:
    named = method if hasattr(method, "__qualname__") else type(method)
    return method if isinstance(method, str) else f"{named.__module__}.{named.__qualname__}"


SearchMethod = Annotated[Any, AfterValidator(_known_method), PlainSerializer(_method_name)]
"""The name of a method; or a searcher that passes `nasx.testing.SearcherContract`; or what makes one.

What makes one is called as `method(architectures, seed=...)`.
"""


def with_settings_named(message: str, section: str, arguments: Sequence[str]) -> str:
    """Return a message about arguments of the library with the names of the settings that they come from.

    An argument without an underscore may be a word of English, unless a backtick stands before it, or `=` or "must"
    behind it.
    """

    def in_full(found: re.Match[str]) -> str:
        backtick, name, behind = found.groups()
        return f"{backtick}{section}.{name}{behind}" if backtick or behind or "_" in name else found[0]

    return re.sub(rf"(?<![\w.])(`?)({'|'.join(arguments)})(?![\w.])(=| must\b|)", in_full, message)


@contextmanager
def _in_words(section: type[BaseModel]) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise ValueError(validation_message(error, section)) from None


class Section(BaseModel):
    """A part of a configuration: immutable, without unknown fields or infinite numbers.

    A ValueError says what is wrong with values, in the words of the command line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        with _in_words(type(self)):
            super().__init__(**values)

    # as BaseModel's own: a section inside of another is validated with it, so that messages have the whole path
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Return the values of a mapping as such a section; ValueError as above."""
        with _in_words(cls):
            return super().model_validate(obj, **options)

    def unused(self) -> dict[str, str]:
        """Return the fields that have no effect beside the values of others, and why; those of sections by path."""
        sections = {name: value for name, value in self if isinstance(value, Section)}
        return {f"{name}.{field}": why for name, value in sections.items() for field, why in value.unused().items()}


class Choices(Section):
    """What a space offers: a field that is a list has the options of a choice. It is the section `space`."""

    @model_validator(mode="after")
    def _distinct_options(self) -> "Choices":
        for name, options in self:
            if not isinstance(options, tuple):
                continue
            if not options:
                raise ValueError(f"space.{name} must offer at least one option, but got []; write one, or leave it out")
            if twice := [option for i, option in enumerate(options) if option in options[:i]]:
                raise ValueError(f"space.{name} must offer different options, but {twice[0]!r} comes twice; remove one")
        return self


def _listed(values: tuple[float, ...] | None) -> str:
    return "none" if values is None else str(list(values))


class Data(Section):
    """The images of a run: the embedded digits, a folder in ImageNet's layout, tar shards, or a Hugging Face folder."""

    source: Literal["digits", "folder", "shards", "hf"] = Field("folder", description="where images come from")
    image_size: PositiveInt = Field(224, description="height and width in pixels that images are resized to")
    channels: Literal[1, 3] | None = Field(None, description="1 for grey, 3 for colour; none: as the images are")
    class_order: Literal["text", "number"] = Field(
        "text", description="order of class folders: by name, or by number (2 before 10)"
    )
    image_column: str = Field("image", description="column of the images, where `data.source` is hf")
    label_column: str = Field("label", description="column of the labels, where `data.source` is hf")
    val_images: PositiveInt | None = Field(
        None, description="number of training images held out for the search; none: `val_fraction` of them"
    )
    val_fraction: OpenShare = Field(
        0.1, description="share of the training images held out for the search, where `val_images` is not set"
    )
    mean: tuple[float, ...] | None = Field(
        None, description="mean of each channel, for pixels in 0..1; none: measured on the training images"
    )
    std: tuple[PositiveFloat, ...] | None = Field(None, description="standard deviation of each channel, as `mean`")
    leaks: Literal["refuse", "drop", "allow"] = Field(
        "refuse",
        description="what to do about training images that are copies of test images: stop, drop them, or keep them",
    )

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> "Data":
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError(
                f"data.mean and data.std need a value for each channel, both or neither, but got {_listed(self.mean)} "
                f"and {_listed(self.std)}"
            )
        return self

    @model_validator(mode="after")
    def _grey_digits(self) -> "Data":
        if self.source == "digits" and self.channels == 3:
            raise ValueError("data.channels must be 1 for the digits, which are grey, but got 3; remove it")
        return self

    @model_validator(mode="after")
    def _order_of_folders(self) -> "Data":
        if self.class_order != "text" and self.source != "folder":
            raise ValueError(
                f"data.class_order={self.class_order} has an effect on class folders only, but data.source is "
                f"{self.source}; remove it"
            )
        return self

    def unused(self) -> dict[str, str]:
        """Return what the source, or another field, leaves no effect to."""
        columns = () if self.source == "hf" else ("image_column", "label_column")
        found = dict.fromkeys(columns, f"data.source is {self.source}, not hf")
        if self.source == "digits":
            return found | dict.fromkeys(("channels", "val_images", "leaks"), "data.source is digits")
        return found | ({} if self.val_images is None else {"val_fraction": f"data.val_images is {self.val_images}"})

    @property
    def expected_channels(self) -> int:
        """Channels of an image, where none has been read: those that are set, else what the source mostly has."""
        return self.channels or (1 if self.source == "digits" else 3)


class Augmentation(Section):
    """Random changes of each training image (`nasx.data.Augment`); the last three are for photographs only."""

    pad_crop: int = Field(0, ge=0, description="padding around each image before a random crop, in pixels")
    flip: bool = Field(False, description="mirror half of the images")
    erase: Rate = Field(0.0, description="probability of random erasing")
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation either way, in degrees")
    zoom: Rate = Field(0.0, description="largest enlargement or reduction, as a share of the size")
    resized_crop: tuple[Share, Share] | None = Field(
        None, description="smallest and largest share of the area that a crop has, such as [0.08, 1]"
    )
    auto_augment: str | None = Field(
        None, description="RandAugment or AutoAugment in timm's spelling, such as rand-m9-mstd0.5-inc1"
    )
    color_jitter: float = Field(
        0.0, ge=0, description="strength of random brightness, contrast and saturation, as in timm"
    )

    def crops_and_flips(self) -> "Augmentation":
        """Return the same without erasing, rotation, zoom and RandAugment: what SPOS recalibrates with."""
        return self.model_copy(update={"erase": 0.0, "rotate": 0.0, "zoom": 0.0, "auto_augment": None})


def check_rates(section: str, lr: float, final_lr: float, warmup_lr: float = 0.0) -> None:
    """Refuse, as ValueError, a learning rate before or after the highest that is above it."""
    for name, rate in (("final_lr", final_lr), ("warmup_lr", warmup_lr)):
        if rate > lr:
            raise ValueError(
                f"{section}.{name} must be at most {section}.lr, the highest rate, but got {rate:g} and {lr:g}; lower "
                f"{section}.{name}"
            )


class TrainingSettings(Section):
    """What the trainings of a supernet and of single networks have in common."""

    section: ClassVar[str]

    epochs: Epochs = Field(description="length of the training, in epochs")
    batch_size: PositiveInt = Field(1024, description="samples a step, over all devices")
    lr: PositiveFloat = Field(description="highest learning rate")
    final_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    warmup_lr: float = Field(0.0, ge=0, description="learning rate at the start of the warm-up")
    warmup_epochs: float = Field(0, ge=0, description="length of the linear warm-up, in epochs")
    schedule: Literal["step", "epoch"] = Field(
        "step",
        description="when the rate changes: at every step, with the cosine after the warm-up; or at every epoch, "
        "with the warm-up inside the cosine (timm)",
    )
    weight_decay: float = Field(0.0, ge=0, description="strength of weight decay")
    drop_path: Rate = Field(
        0.0, description="probability of stochastic depth in the last block; earlier blocks have less"
    )
    label_smoothing: Rate = Field(0.1, description="share of each target that is spread over all classes")
    clip_norm: PositiveFloat | None = Field(None, description="largest norm of the gradient; none: no clipping")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0: no mixup")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; 0: no CutMix")
    mix_group: PositiveInt | None = Field(
        None, description="samples that share one draw of mixup or CutMix; none: the whole batch"
    )
    repeats: PositiveInt = Field(
        1, description="repeated augmentation: how often each image comes in a row, each time with its own augmentation"
    )
    batch_norm_group: PositiveInt | None = Field(
        None, description="samples whose BatchNorm statistics are computed together; none: the whole batch"
    )
    teacher: str | None = Field(
        None,
        description="timm:NAME=WEIGHTS.safetensors, or the folder of a run or of an exported network, of any recipe "
        "and size, for the same classes and image size; none: no distillation",
    )
    distillation: Literal["soft", "hard"] = Field(
        "soft", description="learn the teacher's probabilities (soft) or its predicted class (hard)"
    )
    distillation_weight: Share = Field(0.5, description="share of the loss that comes from the teacher")
    distillation_temperature: PositiveFloat = Field(1.0, description="temperature of soft distillation")
    augment: Augmentation = Field(Augmentation(), description="random changes of training images")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSettings":
        at = self.section
        if "warmup_epochs" in self.model_fields_set and 0 < self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"{at}.warmup_epochs must be less than {at}.epochs, or the rate only rises, but got "
                f"{self.warmup_epochs:g} and {self.epochs:g}"
            )
        check_rates(at, self.lr, self.final_lr, self.warmup_lr if self.warmup_epochs else 0.0)
        if self.repeats > self.batch_size:
            raise ValueError(
                f"{at}.repeats must be at most {at}.batch_size, or a batch has one image alone, but got {self.repeats} "
                f"and {self.batch_size}; lower {at}.repeats"
            )
        for name, size in (("mix_group", self.mix_group), ("batch_norm_group", self.batch_norm_group)):
            if size is not None and self.batch_size % size:
                raise ValueError(
                    f"{at}.{name} must divide {at}.batch_size, but got {size} and {self.batch_size}; write a divisor"
                )
        if self.batch_norm_group == 1:
            raise ValueError(
                f"{at}.batch_norm_group must be at least 2, because one sample has no variance, but got 1; write 2 or "
                "more, or none"
            )
        if self.distillation == "hard" and self.distillation_temperature != 1:
            raise ValueError(
                f"{at}.distillation_temperature has no effect on hard distillation, but got "
                f"{self.distillation_temperature:g}; leave it out"
            )
        return self

    def unused(self) -> dict[str, str]:
        """Return what is of a teacher or of a warm-up, where there is none."""
        at, found = self.section, dict[str, str]()
        if self.teacher is None:
            of_teacher = ("distillation", "distillation_weight", "distillation_temperature")
            found |= dict.fromkeys(of_teacher, f"there is no {at}.teacher")
        if not self.warmup_epochs:
            found["warmup_lr"] = f"{at}.warmup_epochs is 0"
        return found

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


class SupernetTraining(TrainingSettings):
    """Training of a supernet: Nesterov SGD, cosine to 0, one uniformly sampled path a step (SPOS; GLiT, section 4.1).

    Small data sets learn faster with AdamW, whose weight decay spares vectors and positions. `paths` says which
    networks a step trains (`nasx.train`): `uniform` draws every choice, `architectures` whole networks, `budget` those
    that are searched, `stratified` from `strata` bins of their cost in turn, `sandwich` the largest, which teaches the
    others, the smallest and two more, `fair` every option of every choice.
    """

    section = "supernet"

    paths: Literal["uniform", "architectures", "budget", "stratified", "sandwich", "fair"] = Field(
        "uniform", description="which networks a step trains; see [searching](searching.md#which-networks-train)"
    )
    strata: PositiveInt = Field(8, description="number of cost bins, for `paths=stratified`")
    reduction: Literal["mean", "sum"] = Field("mean", description="how the gradients of a step's networks are combined")
    from_run: str | None = Field(
        None,
        description="a run whose supernets are reused instead of training new ones, if they were trained on the same "
        "space; see [searching again](searching.md#searching-again-with-the-same-supernet)",
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="the optimizer of the supernet")
    decay: Literal["all", "matrices"] = Field(
        "all",
        description="which parameters SGD's weight decay applies to: all, or those of more than one dimension (SPOS)",
    )
    epochs: Epochs = Field(100, description="length of the training, in epochs")
    lr: PositiveFloat = Field(0.2, description="highest learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="strength of weight decay")

    def unused(self) -> dict[str, str]:
        """Return what is of other paths, or of another optimizer."""
        found = super().unused()
        if self.paths != "stratified":
            found["strata"] = f"supernet.paths is {self.paths}, not stratified"
        if self.paths not in ("sandwich", "fair"):
            found["reduction"] = f"supernet.paths is {self.paths}, of which a step has one"
        if self.optimizer == "adamw":
            found["decay"] = "supernet.optimizer is adamw, which never decays vectors"
        return found


class Search(Section):
    """The search; a candidate is scored after its BatchNorm statistics were recomputed.

    `evolution` is SPOS's, `random` draws uniformly, `pareto` is NSGA-II over score and cost, and `local` looks at the
    neighbours of the best. A searcher of your own takes its settings when it is made. With 1,000 validation samples and
    more, the candidates of a generation race (`nasx.search.race`).
    """

    method: SearchMethod = Field("evolution", description="how candidates are proposed")
    population: PositiveInt = Field(50, description="candidates of a generation")
    generations: PositiveInt = Field(20, description="number of generations")
    parents: PositiveInt = Field(10, description="best candidates from which the next generation is bred")
    mutation_probability: Share | dict[str, Share] = Field(
        0.1,
        description="probability that a choice is drawn again: one number, or a mapping from name pattern to number, "
        'such as {"embed_dim": 0.2, "block.*.*": 0.4}; the most specific pattern wins',
    )
    top_k: PositiveInt = Field(5, description="best candidates that are retrained")
    recalibration_batches: int = Field(
        200, ge=0, description="batches from which a candidate's BatchNorm statistics are recomputed; 0: none"
    )
    recalibration_batch_size: PositiveInt = Field(
        128, description="samples of a batch from which BatchNorm statistics are recomputed"
    )
    recalibration_augment: Augmentation | None = Field(
        None, description="augmentation of those batches; none: the supernet's crops and flips"
    )
    eval_batch_size: PositiveInt = Field(512, description="validation samples scored at once; no effect on the score")
    racing_error: Rate = Field(
        0.05,
        description="probability, for each generation, that racing lowers the mean accuracy of the best by more than "
        "0.1 points; 0: no racing",
    )

    @property
    def bred_from(self) -> int:
        """How many of the best candidates so far the next generation comes from, 0 where it comes from none."""
        return self.parents if self.method == "evolution" else 0

    def unused(self) -> dict[str, str]:
        """Return what is of another method, or of recalibration where there is none."""
        found: dict[str, str] = {}
        if not isinstance(self.method, str):
            own = f"search.method is {_method_name(self.method)}, which has settings of its own"
            of_others = ("population", "generations", "parents", "mutation_probability")
            found |= dict.fromkeys(of_others, own)
            found["racing_error"] = f"{_method_name(self.method)} is told exact scores"
        elif self.method in ("random", "pareto", "local"):
            found["parents"] = f"search.method is {self.method}, not evolution"
        if self.method == "pareto":
            found["racing_error"] = "a Pareto search needs the exact scores of all candidates"
        if self.method in ("random", "local"):
            found["mutation_probability"] = f"search.method is {self.method}, not evolution or pareto"
        if not self.recalibration_batches:
            of_it = ("recalibration_batch_size", "recalibration_augment")
            found |= dict.fromkeys(of_it, "search.recalibration_batches is 0")
        return found


class Trust(Section):
    """How far a supernet's ranking can be trusted: the number of networks trained alone to find out, 0 for none."""

    n: int = Field(0, ge=0, description="networks trained alone, spread over the budget; at least 5, 10 for intervals")
    seeds: PositiveInt = Field(
        1, description="trainings of each network; 2 also measure how well two trainings agree (the ceiling)"
    )

    @field_validator("n")
    @classmethod
    def _enough(cls, n: int) -> int:
        if 0 < n < FEWEST:
            raise ValueError(
                f"trust.n must be at least {FEWEST} to judge a ranking, 10 and more give honest intervals, but got {n}"
            )
        return n

    def unused(self) -> dict[str, str]:
        """Return what has no effect where no ranking is judged."""
        return {} if self.n else {"seeds": "trust.n is 0"}


class Retraining(TrainingSettings):
    """Training from scratch, DeiT's recipe.

    `top` trains the `search.top_k` best of a search; `halving` starts with `start` of them and lets the better half
    go on, until as many are left.
    """

    section = "retrain"

    method: Literal["top", "halving"] = Field(
        "top",
        description="`top` trains the `search.top_k` best to the end; `halving` starts with `retrain.start` and "
        "stops the worse half again and again",
    )
    start: PositiveInt = Field(16, description="networks that halving starts with")
    epochs: Epochs = Field(300, description="length of the training, in epochs")
    lr: PositiveFloat = Field(1e-3, description="highest learning rate")
    final_lr: float = Field(1e-5, ge=0, description="learning rate at the end of the cosine")
    warmup_lr: float = Field(1e-6, ge=0, description="learning rate at the start of the warm-up")
    warmup_epochs: float = Field(5, ge=0, description="length of the linear warm-up, in epochs")
    weight_decay: float = Field(0.05, ge=0, description="strength of weight decay")
    drop_path: Rate = Field(
        0.1, description="probability of stochastic depth in the last block; earlier blocks have less"
    )
    clip_norm: PositiveFloat | None = Field(1.0, description="largest norm of the gradient; none: no clipping")
    mixup: float = Field(0.8, ge=0, description="alpha of mixup; 0: no mixup")
    cutmix: float = Field(1.0, ge=0, description="alpha of CutMix; 0: no CutMix")
    ema: OpenShare | None = Field(
        None,
        description="decay of an exponential moving average of the weights; none: no average",
    )
    keep: Literal["ema", "raw", "better"] = Field(
        "better",
        description="which weights are kept where there is an average: the average, the plain ones, or the better on "
        "validation",
    )
    refit: bool = Field(
        False, description="train the networks of the final table again, on training and validation samples together"
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="run blocks through torch.compile; auto: on CUDA, where a training is long enough to gain from it",
    )

    def unused(self) -> dict[str, str]:
        """Return what is of halving, or of an average of the weights, where there is none."""
        found = super().unused()
        if self.method != "halving":
            found["start"] = f"retrain.method is {self.method}, not halving"
        if self.ema is None:
            found["keep"] = "there is no retrain.ema"
        return found


class CostBounds(Section):
    """Bounds on further costs, beside the one that a budget is about; None leaves a cost open."""

    macs_at_most: Amount | None = Field(None, description="most MACs of a network")
    params_at_most: Amount | None = Field(None, description="most parameters of a network")
    latency: str | None = Field(None, description="file of a latency table, as the command `latency` writes it")
    latency_at_most: Amount | None = Field(None, description="most microseconds for a batch, by that table")

    @model_validator(mode="after")
    def _table_and_bound(self) -> "CostBounds":
        if (self.latency is None) != (self.latency_at_most is None):
            raise ValueError(
                f"budget.latency and budget.latency_at_most belong together, but got {self.latency!r} and "
                f"{self.latency_at_most!r}; give both or neither"
            )
        return self

    def further(self, macs: Cost, params: Cost, sizes: Mapping[str, Any]) -> list[Budget]:
        """Return the budgets that these bounds are, for networks of some `sizes` (the fields of their ViT config).

        A ValueError says that a table cannot be read, or is of networks of other sizes.
        """
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

            try:
                table = Latency.load(self.latency, measured_elsewhere=True)  # measured where the network is to run
            except (OSError, ValueError) as error:
                raise ValueError(f"budget.latency cannot be read: {error}") from error
            try:
                table.check_sizes(sizes)
            except ValueError as error:
                raise ValueError(
                    f"budget.latency={self.latency} does not fit: {error}; measure these networks with the command "
                    "`latency` and its --preset, --set and --classes"
                ) from error
            found.append(Budget(table, at_most=self.latency_at_most, names=("", "budget.latency_at_most")))
        return found


class Budgets(CostBounds):
    """Bounds on the network, both inclusive; None leaves a side open."""

    cost: Literal["macs", "params"] = Field("macs", description="what `at_least` and `at_most` bound")
    at_least: Amount | None = Field(None, description="lower bound, inclusive; none: open")
    at_most: Amount | None = Field(None, description="upper bound, inclusive; none: open")

    def budgets(self, macs: Cost, params: Cost, sizes: Mapping[str, Any]) -> list[Budget]:
        """Return the budgets: that of the chosen cost first, then those of others, as `further` does."""
        chosen = macs if self.cost == "macs" else params
        named = ("budget.at_least", "budget.at_most")
        return [Budget(chosen, self.at_least, self.at_most, names=named), *self.further(macs, params, sizes)]


class Finetuning(Section):
    """How the best candidates are trained further from the supernet's weights, beside retraining from scratch.

    The rate falls as a cosine from `lr` to `final_lr`, after the warm-up; all else is as in retraining.
    """

    epochs: float = Field(0, ge=0, le=1e6, description="length of the fine-tuning, in epochs; 0: none")
    lr: PositiveFloat = Field(1e-4, description="highest learning rate")
    final_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    warmup_epochs: float = Field(0, ge=0, description="length of the linear warm-up, in epochs")

    @model_validator(mode="after")
    def _consistent(self) -> "Finetuning":
        check_rates("finetune", self.lr, self.final_lr)
        if 0 < self.epochs <= self.warmup_epochs:
            raise ValueError(
                f"finetune.warmup_epochs must be less than finetune.epochs, or the rate only rises, but got "
                f"{self.warmup_epochs:g} and {self.epochs:g}"
            )
        return self

    def unused(self) -> dict[str, str]:
        """Return what has no effect where nothing is fine-tuned."""
        names = ("lr", "final_lr", "warmup_epochs")
        return {} if self.epochs else dict.fromkeys(names, "finetune.epochs is 0")


class RunConfig(Section):
    """What the runs of all recipes have in common; a recipe's own configuration adds its sections."""

    preset: str = Field("custom", description="name of the preset that the settings started from")
    seed: int = Field(
        0,
        ge=0,
        description="seed of training and search; in recipes also of the data split, which from Python has a seed of "
        "its own, in `Task(seed=...)` or `load_image_folder(seed=...)`",
    )
    threads: PositiveInt = Field(2, le=4096, description="CPU threads; the last bits of a result depend on it")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="what networks compute in; auto: bfloat16 on CUDA devices that have it, else float32"
    )
    data: Data = Field(Data(), description="the images")
    supernet: SupernetTraining = Field(SupernetTraining(), description="training of the supernet")
    search: Search = Field(Search(), description="the search")
    trust: Trust = Field(Trust(), description="the check of the supernet's ranking")
    retrain: Retraining = Field(Retraining(), description="training of the best candidates from scratch")
    finetune: Finetuning = Field(
        Finetuning(), description="fine-tuning of the best candidates from the supernet's weights"
    )

    @model_validator(mode="after")
    def _keeps_weights_or_refits(self) -> "RunConfig":
        if self.retrain.refit and self.finetune.epochs:
            raise ValueError(
                "retrain.refit trains from scratch and would lose the supernet's weights that fine-tuning starts from, "
                f"but got true beside finetune.epochs={self.finetune.epochs:g}; set one of them to false or 0"
            )
        return self

    @model_validator(mode="after")
    def _halves_to_the_best(self) -> "RunConfig":
        retrain, top_k = self.retrain, self.search.top_k
        if retrain.method == "halving" and retrain.start < top_k:
            raise ValueError(
                f"retrain.start must be at least search.top_k, which halving ends with, but got {retrain.start} and "
                f"{top_k}; write retrain.start={2 * top_k}"
            )
        return self

    def finetuning(self) -> Retraining:
        """Return the settings of fine-tuning: those of retraining but for the fields of `finetune`."""
        return self.retrain.model_copy(update=self.finetune.model_dump())

    @property
    def run_words(self) -> tuple[str, ...]:
        """Words that tell this run from others of its preset, for its default directory."""
        return ()
