"""The classification of images: embedded digits, folders in ImageNet's layout, tar shards, Hugging Face tables."""

import copy
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch.nn.functional as F

from nasx.data import Augment, Dataset, ImageArray, Images, Photos, TrainBatches, channel_statistics, eval_batches
from nasx.data.dataset import Indices
from nasx.data.joined import joined_images
from nasx.pipeline.config import Augmentation, Data, RunConfig, TrainingSettings, with_settings_named
from nasx.pipeline.samples import StepBatches
from nasx.pipeline.task import BaseTask, PartName, check_metric
from nasx.train import Loss, Metric, Unpack, Unpacked, unpack

if TYPE_CHECKING:
    from nasx.pipeline.image_sources import ImageSource

_PLAIN = Data()


class ImageTask(BaseTask):
    """The images of a data set, and batches of them: cropped, augmented, mixed and normalised as a run asks.

    `data` says how they are normalised, by default with the statistics of the training images. `source` is what
    `nasx.pipeline.image_sources.load_images` loads them from again in another process, where all else is as it is here.
    """

    def __init__(
        self, dataset: Dataset, data: Data = _PLAIN, *, source: "ImageSource | None" = None, metric: Metric = "accuracy"
    ) -> None:
        self.dataset, self.source = dataset, source
        # what the images turned out to be, so that the settings of a run hold it
        self.data = data.model_copy(update={"channels": dataset.channels, "image_size": dataset.image_size})
        check_metric(metric)
        self.loss: Loss = F.cross_entropy
        self.metric = metric
        self.unpack: Unpack = unpack

    def __getstate__(self) -> dict[str, Any]:
        left_out = {"_test", "call"} if self.source is None else {"_test", "call", "dataset"}
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.source is not None:
            from nasx.pipeline.image_sources import load_images  # which makes tasks

            self.dataset = load_images(self.source).dataset

    def __copy__(self) -> Self:
        same = type(self).__new__(type(self))
        vars(same).update(vars(self))
        return same

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that images are normalised by: the given ones, or the training images'."""
        if self.data.mean is not None and self.data.std is not None:
            return self.data.mean, self.data.std
        return channel_statistics(self.dataset.train)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of the images."""
        return tuple(of_settings(remark) for remark in self.dataset.remarks)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many training and validation images there are."""
        return {"train": len(self.dataset.train), "val": len(self.dataset.val)}

    def record(self) -> dict[str, Any]:
        """Return the record of the split."""
        return dict(self.dataset.split)

    def bytes_to_keep(self, limit: float) -> int:
        """Return the bytes of the decoded training and validation images that are kept where they fit."""
        sizes = [
            len(part) * part.channels * part.image_size**2
            for part in (self.dataset.train, self.dataset.val)
            if isinstance(part, Photos) and not part.in_memory
        ]
        return sum(size for size in sizes if size <= limit)

    def unmeasured(self) -> "ImageTask":
        """Return the same task with stand-ins for the channels' statistics, which need all images to be read."""
        if self.data.mean is not None:
            return self
        same = copy.copy(self)  # whose settings stay those of a run
        same.statistics = (0.5,) * self.dataset.channels, (0.5,) * self.dataset.channels
        return same

    def train_batches(
        self,
        training: TrainingSettings,
        *,
        seed: int,
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
        with_validation: bool = False,
    ) -> TrainBatches:
        """Return augmented training batches."""
        mean, std = self.statistics
        both = self.dataset.train, self.dataset.val
        return TrainBatches(
            joined_images(*both) if with_validation else self.dataset.train,
            batch_size=training.batch_size,
            seed=seed,
            augment=Augment(**training.augment.model_dump()),
            mean=mean,
            std=std,
            classes=len(self.dataset.classes),
            mixup=training.mixup,
            cutmix=training.cutmix,
            label_smoothing=training.target_smoothing,
            mix_group=training.mix_group,
            part=part,
            repeats=training.repeats,
            workers=workers,
        )

    def check(self, training: TrainingSettings) -> None:
        """Refuse what the images cannot be augmented or mixed by."""
        padding, size = training.augment.pad_crop, self.dataset.image_size
        if padding >= size:
            raise ValueError(
                f"{training.section}.augment.pad_crop must be less than data.image_size, or some crops hold nothing of "
                f"the image, but got {padding} and {size}; lower it"
            )
        try:
            self.train_batches(training, seed=0)
        except ValueError as error:
            named = with_settings_named(str(error), f"{training.section}.augment", tuple(Augmentation.model_fields))
            raise ValueError(
                with_settings_named(named, training.section, tuple(TrainingSettings.model_fields))
            ) from error

    def check_recalibration(self, config: RunConfig) -> None:
        """Refuse what the images cannot be augmented by."""
        try:
            self.recalibration_batches(config, seed=0)
        except ValueError as error:
            names = tuple(Augmentation.model_fields)
            raise ValueError(with_settings_named(str(error), "search.recalibration_augment", names)) from error

    def recalibration_batches(self, config: RunConfig, *, seed: int, workers: int = 0) -> StepBatches:
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
            return self._test
        return self.dataset.train if part == "train" else self.dataset.val

    @cached_property
    def _test(self) -> Images:
        return self.dataset.open_test()  # once, however many networks are tested

    def example(self, batch: int = 1) -> Unpacked:
        """Return the first validation images, normalised; blank ones where there are none."""
        if not len(self.dataset.val):
            blank = np.zeros((batch, self.dataset.channels, *[self.dataset.image_size] * 2), np.uint8)
            images = ImageArray(blank, np.zeros(batch, np.int64))
            ones = (1.0,) * self.dataset.channels
            return unpack(next(iter(eval_batches(images, batch, ones, ones))))
        return super().example(batch)


def of_settings(message: str) -> str:
    """Return what a loader says of its arguments, with the names that they have as settings."""
    names = ("val_images", "val_fraction", "leaks", "class_order", "image_column", "label_column")
    return with_settings_named(message, "data", names)
