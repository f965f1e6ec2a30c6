"""What a run is about: its images, spaces, costs and budgets, checked before anything is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

from nasx import Arch, Budget, Space
from nasx.arch import Value
from nasx.cost import AdditiveCost
from nasx.data import Augment, Dataset, TrainBatches, channel_statistics, load_digits, load_image_folder
from nasx.feasible import Feasible
from recipes.glit.config import Augmentation, Config
from recipes.glit.cost import Macs, PaperMacs, Params
from recipes.glit.model import Frame
from recipes.glit.space import Axes, details_space, heads_space, same_heads, table2


@dataclass(frozen=True)
class DetailsBound(AdditiveCost):
    """The least or greatest cost that stage two can reach from the heads of an architecture."""

    axes: Axes
    cost: AdditiveCost
    greatest: bool

    @property
    def unit(self) -> str:  # type: ignore[override]
        """What the cost counts, and from where it is seen."""
        return f"{self.cost.unit} at {'most' if self.greatest else 'least'} in stage two"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the cost outside the blocks."""
        return self.cost.fixed(shared)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the bound over the details of one block."""
        bounds = _details_range(self.axes, self.cost, name, index, int(choices["global_heads"]))
        return bounds[1] if self.greatest else bounds[0]


@cache
def _details_range(axes: Axes, cost: AdditiveCost, name: str, index: int, global_heads: int) -> tuple[int, int]:
    details = details_space(Arch({"block.0.global_heads": global_heads}), axes.with_blocks(1))
    costs = [cost.part(name, index, Arch(), arch.at("block.0")) for arch in details]
    return min(costs), max(costs)


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
        """Stage one's architectures: inside its upper bound, and with details that can meet the last stage's budget."""
        budget = self.config.budget
        bounds = [Budget(self.cost, at_most=budget.heads_at_most)]
        if budget.details_at_most is not None:
            least = DetailsBound(self.axes, self.cost, greatest=False)
            bounds.append(Budget(least, at_most=budget.details_at_most))
        if budget.details_at_least is not None:
            greatest = DetailsBound(self.axes, self.cost, greatest=True)
            bounds.append(Budget(greatest, at_least=budget.details_at_least))
        return heads_space(self.axes).within(*bounds)

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
        from recipes.glit.model import build_in

        for heads in self.axes.global_heads:
            build_in(self.frame, same_heads(heads, self.axes))  # refuses widths that do not divide
        _ = self.joint
        if self.config.method == "hierarchical":
            _ = self.heads
            self.details(self.heads.sample(0))
        for batch_size in (self.config.supernet.batch_size, self.config.retrain.batch_size):
            self.batches(batch_size, Augmentation(), seed=0)

    def batches(
        self, batch_size: int, augment: Augmentation, *, seed: int, mixup: float = 0.0, cutmix: float = 0.0
    ) -> TrainBatches:
        """Return the training batches, a pure function of seed and step."""
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
