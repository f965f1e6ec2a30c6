"""The classification of images: the embedded digits, or a folder in ImageNet's layout, with augmentation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F

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
from nasx.pipeline.config import Data, RunConfig, Training
from nasx.pipeline.machine import Machine
from nasx.pipeline.samples import Steps
from nasx.pipeline.task import BaseTask, PartName
from nasx.train import Loss, Metric, Unpack, Unpacked, unpack

OnProgress = Callable[[int, int], object]


class ImageTask(BaseTask):
    """The images of a data set, and batches of them: cropped, augmented, mixed and normalised as a run asks.

    `data` says how they are normalised. `source` is what `load_images` loads them from again in another process.
    """

    def __init__(
        self, dataset: Dataset, data: Data, *, source: "ImageSource | None" = None, metric: Metric = "accuracy"
    ) -> None:
        self.dataset, self.data, self.source = dataset, data, source
        self.loss: Loss = F.cross_entropy
        self.metric = metric
        self.unpack: Unpack = unpack

    def __reduce__(self) -> Any:
        if self.source is None:
            return ImageTask, (self.dataset, self.data)
        return load_images, (self.source,)

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that images are normalised by: the given ones, or the training images'."""
        if self.data.mean is not None and self.data.std is not None:
            return self.data.mean, self.data.std
        return channel_statistics(self.dataset.train)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many training and validation images there are."""
        return {"train": len(self.dataset.train), "val": len(self.dataset.val)}

    def record(self) -> dict[str, Any]:
        """Return the record of the split."""
        return dict(self.dataset.split)

    def train_batches(
        self,
        training: Training,
        *,
        seed: int,
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
        with_validation: bool = False,
    ) -> TrainBatches:
        """Return augmented training batches."""
        mean, std = self.statistics
        images = self.dataset.train_and_val() if with_validation else self.dataset.train
        return TrainBatches(
            images,
            batch_size=training.batch_size,
            seed=seed,
            augment=Augment(**training.augment.model_dump()),
            mean=mean,
            std=std,
            classes=len(self.dataset.classes),
            mixup=training.mixup,
            cutmix=training.cutmix,
            mix_group=training.mix_group,
            label_smoothing=training.target_smoothing,
            part=part,
            repeats=training.repeats,
            workers=workers,
        )

    def recalibration_batches(self, config: RunConfig, *, seed: int, workers: int = 0) -> Steps:
        """Return training batches that are cropped and flipped, but neither mixed nor erased (SPOS)."""
        augment = config.search.recalibration_augment or config.supernet.augment.crops_and_flips()
        mean, std = self.statistics
        return TrainBatches(
            self.dataset.train,
            batch_size=config.search.recalibration_batch_size,
            seed=seed,
            augment=Augment(**augment.model_dump()),
            mean=mean,
            std=std,
            workers=workers,
        )

    def eval_batches(
        self, part: PartName, batch_size: int, *, indices: Indices | None = None, workers: int = 0
    ) -> Iterable[Any]:
        """Return the images of a part in order, all or those at some positions."""
        return eval_batches(self.images(part), batch_size, *self.statistics, indices=indices, workers=workers)

    def images(self, part: PartName) -> Images:
        """Return the images of a part; the test images are opened now, and decoded when they are read."""
        if part == "test":
            return self.dataset.open_test()
        return self.dataset.train if part == "train" else self.dataset.val

    def example(self, batch: int = 1) -> Unpacked:
        """Return the first validation images, normalised; blank ones where there are none."""
        count = min(batch, len(self.dataset.val))
        if not count:
            blank = np.zeros((batch, self.dataset.channels, *[self.dataset.image_size] * 2), np.uint8)
            images = ImageArray(blank, np.zeros(batch, np.int64))
            ones = (1.0,) * self.dataset.channels
            return unpack(next(iter(eval_batches(images, batch, ones, ones))))
        return unpack(next(iter(self.eval_batches("val", count, indices=np.arange(count)))))


@dataclass(frozen=True)
class ImageSource:
    """Where images come from, so that any process can load them."""

    data: Data
    seed: int
    path: Path | None = None
    machine: Machine = Machine()


_loaded: dict[ImageSource, ImageTask] = {}


def load_images(source: ImageSource, on_progress: OnProgress = lambda done, total: None) -> ImageTask:
    """Return the task of images, loaded; the last are kept, because a worker process trains several networks.

    The machine says how much of them is kept in memory. `on_progress(done, total)` is called as images are read into
    memory. Raises ValueError for what is no data set.
    """
    if source not in _loaded:
        _loaded.clear()
        _loaded[source] = ImageTask(_load(source, on_progress), source.data, source=source)
    return _loaded[source]


def _load(source: ImageSource, on_progress: OnProgress) -> Dataset:
    data = source.data
    if data.source == "digits":
        if source.path is not None:
            raise ValueError(
                f"data.source=digits reads the embedded digits, but --data {source.path} was given; remove --data, or "
                "choose a preset for image folders"
            )
        dataset = load_digits(seed=source.seed, val_fraction=data.val_fraction)
    else:
        if source.path is None:
            raise ValueError("data.source=folder reads an image folder: give --data DIR with train/ and test/ or val/")
        dataset = load_image_folder(
            source.path,
            image_size=data.image_size,
            seed=source.seed,
            val_images=data.val_images,
            val_fraction=data.val_fraction,
            leaks=data.leaks,
            max_bytes=int(source.machine.image_memory_gib * 2**30),
            on_progress=on_progress,
        )
    if dataset.image_size != data.image_size:
        raise ValueError(f"data.image_size must be {dataset.image_size} for these images, but got {data.image_size}")
    if len(dataset.classes) < 2:
        raise ValueError(f"the images have one class, {dataset.classes[0]!r}, but there is nothing to learn below two")
    if data.mean is not None and len(data.mean) != dataset.channels:
        raise ValueError(
            f"data.mean and data.std have {len(data.mean)} values, but the images {dataset.channels} channels; give as "
            "many, or null to measure them"
        )
    return dataset


def recorded_images(data: Data, split: Mapping[str, Any]) -> ImageTask:
    """Return the task that the record of a split describes, without images: enough for networks and costs."""
    none = ImageArray(np.zeros((0, data.channels, data.image_size, data.image_size), np.uint8), np.zeros(0, np.int64))
    dataset = Dataset(
        name=data.source,
        classes=tuple(split["train"]["per_class"]),
        channels=data.channels,
        image_size=data.image_size,
        train=none,
        val=none,
        split=dict(split),
        test=lambda: none,
    )
    return ImageTask(dataset, data)


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What the names and headers of an image folder say, before any image is decoded."""

    train: int
    classes: int
    shorter_side: int
    """Median of the shorter sides in pixels, of up to 500 images."""

