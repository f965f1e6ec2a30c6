"""What a run is about: a configuration with its images, and what a recipe says of its networks."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor, nn

from nasx.arch import Arch, matches
from nasx.cost import AdditiveCost
from nasx.data import (
    Augment,
    Dataset,
    ImageArray,
    TrainBatches,
    channel_statistics,
    eval_batches,
    load_digits,
    load_image_folder,
)
from nasx.data.dataset import Images, Indices
from nasx.feasible import Feasible
from nasx.pipeline.config import Retraining, RunConfig, SupernetTraining
from nasx.pipeline.machine import Machine
from nasx.report import BlockDrawing
from nasx.space import Space, name_patterns


class ImageTask:
    """The images of a run, and the batches that its configuration makes of them."""

    def __init__(self, config: RunConfig, data_path: Path | None, dataset: Dataset, *, workers: int = 0) -> None:
        self.config, self.data_path, self.dataset, self.workers = config, data_path, dataset, workers

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that images are normalised by: the configuration's, or the training images'."""
        mean, std = self.config.data.mean, self.config.data.std
        if mean is not None and std is not None:
            return mean, std
        return channel_statistics(self.dataset.train)

    def supernet_batches(self, *, seed: int, part: tuple[int, int] = (0, 1)) -> TrainBatches:
        """Return what supernets are trained on; `part=(rank, size)` is one rank's part of every batch."""
        return self._batches(self.config.supernet, seed, part)

    def recalibration_batches(self, *, seed: int) -> TrainBatches:
        """Return what BatchNorm statistics are recomputed from."""
        plain = {"batch_size": self.config.search.recalibration_batch_size, "mixup": 0.0, "cutmix": 0.0}
        return self._batches(self.config.supernet.model_copy(update=plain), seed)

    def retrain_batches(
        self, *, seed: int, training: Retraining | None = None, part: tuple[int, int] = (0, 1)
    ) -> TrainBatches:
        """Return what networks are trained on, from scratch by default."""
        return self._batches(training or self.config.retrain, seed, part)

    def eval_batches(
        self, images: Images, batch_size: int | None = None, indices: Indices | None = None
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """Return images in order for an evaluation, all by default, in batches of the configured size by default."""
        size = batch_size or self.config.search.eval_batch_size
        return eval_batches(images, size, *self.statistics, indices=indices, workers=self.workers)

    def check(self) -> None:
        """Refuse batches that cannot be, before anything is trained."""
        if len(self.statistics[0]) != self.dataset.channels:
            raise ValueError(
                f"data.mean and data.std have {len(self.statistics[0])} values, but the images {self.dataset.channels} "
                "channels; give as many, or null to measure them"
            )
        self.supernet_batches(seed=0)
        self.retrain_batches(seed=0)
        if self.config.search.recalibration_batches:
            self.recalibration_batches(seed=0)

    def _batches(
        self, training: SupernetTraining | Retraining, seed: int, part: tuple[int, int] = (0, 1)
    ) -> TrainBatches:
        mean, std = self.statistics
        soft = bool(training.mixup or training.cutmix)  # then the targets carry the smoothing
        return TrainBatches(
            self.dataset.train,
            batch_size=training.batch_size,
            seed=seed,
            augment=Augment(**training.augment.model_dump()),
            mean=mean,
            std=std,
            classes=len(self.dataset.classes),
            mixup=training.mixup,
            cutmix=training.cutmix,
            label_smoothing=training.label_smoothing if soft else 0.0,
            part=part,
            repeats=getattr(training, "repeats", 1),
            workers=self.workers,
        )


_loaded: dict[tuple[str, Path | None, Machine], ImageTask] = {}


def load_task(
    config: RunConfig,
    data_path: Path | None,
    machine: Machine | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> ImageTask:
    """Return a run's images, loaded; the last are kept, because a worker process trains several networks.

    The machine, by default this one's settings, says how much of them is kept in memory and how many processes read
    the others ahead. `on_progress(done, total)` is told of images that are read into memory. Raises ValueError for what
    is no data set.
    """
    machine = machine or Machine()
    key = config.model_dump_json(), data_path, machine
    if key not in _loaded:
        _loaded.clear()
        dataset = _load(config, data_path, machine, on_progress)
        _loaded[key] = ImageTask(config, data_path, dataset, workers=machine.workers)
    return _loaded[key]


def _load(
    config: RunConfig, data_path: Path | None, machine: Machine, on_progress: Callable[[int, int], object] | None
) -> Dataset:
    data = config.data
    if data.source == "digits":
        if data_path is not None:
            raise ValueError(
                f"the preset {config.preset!r} reads the embedded digits, so --data {data_path} has no use; "
                "choose a preset for image folders"
            )
        dataset = load_digits(seed=config.seed, val_fraction=data.val_fraction)
    else:
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
            leaks=data.leaks,
            max_bytes=int(machine.image_memory_gib * 2**30),
            on_progress=on_progress or (lambda done, total: None),
        )
    if dataset.image_size != data.image_size:
        raise ValueError(f"data.image_size must be {dataset.image_size} for these images, but got {data.image_size}")
    return dataset


def recorded_task(config: RunConfig, split: Mapping[str, Any]) -> ImageTask:
    """Return what the record of a split says of a run's images, without one image: enough for networks and costs."""
    channels, size = 1 if config.data.source == "digits" else 3, config.data.image_size
    none = ImageArray(np.zeros((0, channels, size, size), np.uint8), np.zeros(0, np.int64))
    dataset = Dataset(
        name=config.data.source,
        classes=tuple(split["train"]["per_class"]),
        channels=channels,
        image_size=size,
        train=none,
        val=none,
        split=dict(split),
        test=lambda: none,
    )
    return ImageTask(config, None, dataset)


Level = Callable[[Mapping[str, Any]], tuple[Space, Feasible]]
"""One level of a search, given the results of earlier stages: the supernet's space and the architectures searched."""


Configured = TypeVar("Configured", bound=RunConfig)


class Problem(ABC, Generic[Configured]):
    """What a recipe brings: its networks, supernets and costs for the images of one run.

    The stages of `nasx.pipeline` do the rest. `config` is the recipe's own kind of RunConfig.
    """

    title: str
    """What reports call the recipe."""
    drawing_legend: str = ""
    """What the picture of an architecture shows."""

    def __init__(self, config: Configured, task: ImageTask) -> None:
        self.config, self.task = config, task

    @property
    @abstractmethod
    def joint(self) -> Feasible:
        """All networks that the run can find: the whole space inside the final budget."""

    @property
    @abstractmethod
    def cost(self) -> AdditiveCost:
        """The cost that budgets bound."""

    @abstractmethod
    def macs(self, arch: Arch) -> int:
        """Return the multiply-adds of a network of the run, for one image."""

    @abstractmethod
    def params(self, arch: Arch) -> int:
        """Return the parameters of a network of the run."""

    @abstractmethod
    def supernet(self, space: Space) -> nn.Module:
        """Return an untrained supernet for a space of the run (`nasx.nn.Supernet`)."""

    @abstractmethod
    def network(self, arch: Arch) -> Callable[[], nn.Module]:
        """Return what builds an untrained network to be trained from scratch; it must be picklable."""

    @abstractmethod
    def baselines(self) -> Mapping[str, tuple[str, Arch]]:
        """Return the networks to compare with beside one drawn from the budget: key -> (label, architecture)."""

    @abstractmethod
    def drawings(self, arch: Arch) -> Sequence[BlockDrawing]:
        """Return the picture of an architecture, a box a block."""

    def check(self) -> None:
        """Refuse what no stage could do, before any of them starts; a ValueError says what to change."""
        self.task.check()
        self._check_patterns()
        self.joint.sample(0)  # budgets that filter, or costs that were bucketed, may be met by no network at all

    def _check_patterns(self) -> None:
        probability = self.config.search.mutation_probability
        choices = list(self.joint.space.walk())
        for pattern in probability if isinstance(probability, dict) else ():
            if not any(matches(pattern, name) for name, _ in choices):
                raise ValueError(
                    f"search.mutation_probability has the pattern {pattern!r}, which fits no choice of the space; "
                    f"there are {', '.join(name_patterns(choices))}"
                )

    def seed(self, name: str) -> int:
        """Return a stage's own seed, from the run's seed and the stage's name."""
        return zlib.crc32(f"{self.config.seed}/{name}".encode()) & 0x7FFFFFFF
