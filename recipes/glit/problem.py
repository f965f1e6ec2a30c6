"""What a run is about: its images, spaces, costs and budgets, checked before anything is trained."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations_with_replacement
from pathlib import Path

import torch

from nasx import Arch, Budget, Space
from nasx.data import Augment, Dataset, TrainBatches, channel_statistics, load_digits, load_image_folder
from nasx.feasible import Feasible
from recipes.glit.config import Augmentation, Config
from recipes.glit.cost import Macs, PaperMacs, Params
from recipes.glit.model import Frame, build_in
from recipes.glit.space import Axes, details_space, heads_space, same_heads, table2, with_heads


class MissingDetails:
    """Costs 0 where the heads of an architecture have details inside the last stage's budget, and 1 where not.

    Costs do not depend on the order of blocks, so one answer serves all orders of the same heads.
    """

    unit = "heads without details in the budget"

    def __init__(self, problem: "Problem") -> None:
        self._problem = problem
        self._known: dict[tuple[int, ...], int] = {}

    def __call__(self, arch: Arch) -> int:
        """Return 0 or 1."""
        heads = tuple(sorted(int(value) for value in arch.only("block.*.global_heads").values()))
        if heads not in self._known:
            try:
                self._problem.details(Arch({f"block.{i}.global_heads": h for i, h in enumerate(heads)}))
                self._known[heads] = 0
            except ValueError:
                self._known[heads] = 1
        return self._known[heads]


@dataclass(frozen=True)
class Problem:
    """A configuration with its data: everything that the stages compute from."""

    config: Config
    data_path: Path | None
    dataset: Dataset

    @cached_property
    def frame(self) -> Frame:
        """What all networks of the run share."""
        return self.config.frame(in_channels=self.dataset.channels, num_classes=len(self.dataset.classes))

    @cached_property
    def axes(self) -> Axes:
        """The axes of the search."""
        return self.config.axes()

    @cached_property
    def macs(self) -> Macs:
        """Exact multiply-adds in this run's frame."""
        return Macs(self.frame)

    @cached_property
    def params(self) -> Params:
        """Parameters in this run's frame."""
        return Params(self.frame)

    @cached_property
    def cost(self) -> Macs:
        """The cost that budgets bound."""
        return self.macs if self.config.budget.cost == "macs" else PaperMacs(self.frame)

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the training images' channels."""
        return channel_statistics(self.dataset.train)

    @property
    def details_budget(self) -> Budget:
        """The budget of the last stage, and so of the network that is found."""
        budget = self.config.budget
        return Budget(self.cost, budget.details_at_least, budget.details_at_most)

    @cached_property
    def heads(self) -> Feasible:
        """Stage one's architectures: inside its upper bound, and with details inside the last stage's budget.

        A ValueError says where no heads have both.
        """
        budget, missing = self.config.budget, MissingDetails(self)
        upper = Budget(self.cost, at_most=budget.heads_at_most)
        space = heads_space(self.axes)
        inside = space.within(upper)
        every = combinations_with_replacement(self.axes.global_heads, self.axes.blocks)
        orderless = (with_heads(heads, self.axes) for heads in every)
        if all(arch not in upper or missing(arch) for arch in orderless):
            raise ValueError(
                f"no heads inside {upper} (stage one) have details inside {self.details_budget} (the last stage); "
                f"held details give {inside.attainable.low:,} to {inside.attainable.high:,} {self.cost.unit}"
            )
        return space.within(upper, Budget(missing, at_most=0))

    def details(self, heads: Arch) -> Feasible:
        """Return stage two's architectures for the heads that stage one chose."""
        return details_space(heads, self.axes).within(self.details_budget)

    @cached_property
    def joint_space(self) -> Space:
        """The joint space of table 2."""
        return table2(self.axes)

    @cached_property
    def joint(self) -> Feasible:
        """The joint space inside the last stage's budget, for the baselines that search it at once."""
        return self.joint_space.within(self.details_budget)

    @property
    def deit_shaped(self) -> Arch:
        """The network whose heads are all global."""
        return same_heads(self.config.model.num_heads, self.axes)

    def check(self) -> None:
        """Refuse what no stage could do, before any of them starts; a ValueError says what to change."""
        config = self.config
        if self.dataset.image_size != self.frame.image_size:
            raise ValueError(
                f"data.image_size must be {self.dataset.image_size} for these images, but got {self.frame.image_size}"
            )
        with torch.device("meta"):  # refuses widths that do not divide, without computing
            for block in table2(self.axes.with_blocks(1)):
                build_in(self.frame, block)
        _ = self.joint
        if config.method == "hierarchical":
            _ = self.heads
        self.supernet_batches(seed=0)
        self.retrain_batches(seed=0)
        if config.method != "random":
            self.recalibration_batches(seed=0)

    def supernet_batches(self, *, seed: int) -> TrainBatches:
        """Return what supernets are trained on."""
        return self._batches(self.config.supernet.batch_size, self.config.supernet.augment, seed)

    def recalibration_batches(self, *, seed: int) -> TrainBatches:
        """Return what BatchNorm statistics are recomputed from."""
        return self._batches(self.config.search.recalibration_batch_size, self.config.supernet.augment, seed)

    def retrain_batches(self, *, seed: int) -> TrainBatches:
        """Return what networks are trained on from scratch."""
        config = self.config.retrain
        return self._batches(config.batch_size, config.augment, seed, config.mixup, config.cutmix)

    def _batches(
        self, batch_size: int, augment: Augmentation, seed: int, mixup: float = 0.0, cutmix: float = 0.0
    ) -> TrainBatches:
        mean, std = self.statistics
        return TrainBatches(
            self.dataset.train,
            batch_size=batch_size,
            seed=seed,
            augment=Augment(**augment.model_dump()),
            mean=mean,
            std=std,
            classes=len(self.dataset.classes),
            mixup=mixup,
            cutmix=cutmix,
            label_smoothing=self.config.retrain.label_smoothing if mixup or cutmix else 0.0,
        )


@lru_cache(maxsize=1)
def load_problem(config: Config, data_path: Path | None) -> Problem:
    """Return a run's problem with its data set loaded; kept, because a worker process trains several networks."""
    data = config.data
    if data.source == "digits":
        if data_path is not None:
            raise ValueError(
                f"the preset {config.preset!r} reads the embedded digits, so --data {data_path} has no use; "
                "choose a preset for image folders such as cifar10"
            )
        return Problem(config, None, load_digits(seed=config.seed, val_fraction=data.val_fraction))
    if data_path is None:
        raise ValueError(
            f"the preset {config.preset!r} needs an image folder: --data DIR with train/ and test/ or val/"
        )
    dataset = load_image_folder(
        data_path,
        image_size=data.image_size,
        seed=config.seed,
        val_images=data.val_images,
        val_fraction=data.val_fraction,
    )
    return Problem(config, data_path, dataset)
