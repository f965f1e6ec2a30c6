"""The classification of images: embedded digits, folders in ImageNet's layout, tar shards, Hugging Face tables."""

import copy
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nasx.data import (
    Augment,
    BrokenImage,
    Dataset,
    Files,
    ImageArray,
    Images,
    Photos,
    Source,
    TrainBatches,
    channel_statistics,
    eval_batches,
    load_digits,
    load_hf_folder,
    load_image_folder,
    load_shards,
    load_test_folder,
)
from nasx.data.broken import refuse_broken
from nasx.data.dataset import Indices
from nasx.data.hf import table_parts
from nasx.data.shards import shard_parts
from nasx.data.walk import class_folders, ordered_classes, walk_classes
from nasx.pipeline.config import Augmentation, Data, RunConfig, Training, with_settings_named
from nasx.pipeline.machine import Machine
from nasx.pipeline.samples import Steps
from nasx.pipeline.task import BaseTask, PartName
from nasx.train import Loss, Metric, Unpack, Unpacked, unpack

OnProgress = Callable[[int, int], object]

_LOADERS: dict[str, Callable[..., Dataset]] = {
    "folder": load_image_folder,
    "shards": load_shards,
    "hf": load_hf_folder,
}

_ARGUMENTS = ("val_images", "val_fraction", "leaks", "class_order", "image_column", "label_column")
"""Of those functions, what messages name and settings are called too."""

_PLAIN = Data()


class ImageTask(BaseTask):
    """The images of a data set, and batches of them: cropped, augmented, mixed and normalised as a run asks.

    `data` says how they are normalised, by default with the statistics of the training images. `source` is what
    `load_images` loads them from again in another process, where all else is as it is here.
    """

    def __init__(
        self, dataset: Dataset, data: Data = _PLAIN, *, source: "ImageSource | None" = None, metric: Metric = "accuracy"
    ) -> None:
        self.dataset, self.source = dataset, source
        # what the images turned out to be, so that the settings of a run hold it
        self.data = data.model_copy(update={"channels": dataset.channels, "image_size": dataset.image_size})
        self.loss: Loss = F.cross_entropy
        self.metric = metric
        self.unpack: Unpack = unpack

    def __getstate__(self) -> dict[str, Any]:
        left_out = {"_test", "call"} if self.source is None else {"_test", "call", "dataset"}
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.source is not None:
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
        return tuple(with_settings_named(remark, "data", _ARGUMENTS) for remark in self.dataset.remarks)

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
        training: Training,
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

    def check(self, training: Training) -> None:
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
            raise ValueError(with_settings_named(named, training.section, tuple(Training.model_fields))) from error

    def check_recalibration(self, config: RunConfig) -> None:
        """Refuse what the images cannot be augmented by."""
        try:
            self.recalibration_batches(config, seed=0)
        except ValueError as error:
            names = tuple(Augmentation.model_fields)
            raise ValueError(with_settings_named(str(error), "search.recalibration_augment", names)) from error

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


@dataclass(frozen=True)
class ImageSource:
    """Where images come from, so that any process can load them."""

    data: Data
    seed: int
    path: Path | None = None
    machine: Machine = field(default_factory=Machine)


_loaded: dict[ImageSource, ImageTask] = {}


def load_images(
    source: ImageSource,
    on_progress: OnProgress = lambda done, total: None,
    on_check: OnProgress = lambda done, total: None,
) -> ImageTask:
    """Return the task of images, loaded; the last are kept, because a worker process trains several networks.

    The machine says how much of them is kept in memory. `on_check(done, total)` is called as headers are looked at,
    `on_progress(done, total)` as images are read into memory. Raises ValueError for what is no data set.
    """
    if source not in _loaded:
        _loaded.clear()
        _loaded[source] = ImageTask(_load(source, on_progress, on_check), source.data, source=source)
    return _loaded[source]


def _load(source: ImageSource, on_progress: OnProgress, on_check: OnProgress) -> Dataset:
    data = source.data
    check_folder(data, source.path)
    if data.source == "digits":
        with _settings_named():
            dataset = load_digits(seed=source.seed, val_fraction=data.val_fraction)
    else:
        with _settings_named():
            dataset = _LOADERS[data.source](
                _folder(source.path, data),
                image_size=data.image_size,
                seed=source.seed,
                channels=data.channels,
                val_images=data.val_images,
                val_fraction=data.val_fraction,
                leaks=data.leaks,
                max_bytes=source.machine.image_bytes,
                on_progress=on_progress,
                on_check=on_check,
                **_of_source(data),
            )
    if dataset.image_size != data.image_size:
        raise ValueError(f"data.image_size must be {dataset.image_size} for these images, but got {data.image_size}")
    if data.mean is not None and len(data.mean) != dataset.channels:
        raise ValueError(
            f"data.mean and data.std have {len(data.mean)} values, but the images {dataset.channels} channels; give as "
            "many, or null to measure them"
        )
    return dataset


def _of_source(data: Data) -> dict[str, str]:
    """Return the arguments that the loader of a source has alone."""
    match data.source:
        case "folder":
            return {"class_order": data.class_order}
        case "hf":
            return {"image_column": data.image_column, "label_column": data.label_column}
    return {}


@contextmanager
def _settings_named() -> Iterator[None]:
    """Name settings in the message of a ValueError about arguments of a loader."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise ValueError(with_settings_named(str(error), "data", _ARGUMENTS)) from error


def check_folder(data: Data, path: Path | None, presets: Sequence[str] = ()) -> None:
    """Refuse, as ValueError, a folder beside the embedded digits, and no folder where images are read from one.

    `presets` are those for image folders, which the message names.
    """
    if data.source != "digits":
        _folder(path, data)
    elif path is not None:
        raise ValueError(
            f"data.source=digits reads the embedded digits, but --data {path} was given; remove --data, or choose a "
            f"preset for image folders{': ' if presets else ''}{' or '.join(f'--preset {name}' for name in presets)}"
        )


def _folder(path: Path | None, data: Data) -> Path:
    if path is None:
        holding = " with train/ and test/ or val/" if data.source == "folder" else ""
        raise ValueError(f"data.source={data.source} reads images from a folder; give --data DIR{holding}")
    return path


def blank_images(data: Data, classes: int | Sequence[str]) -> ImageTask:
    """Return a task of no images with some classes: enough for networks and costs."""
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    return recorded_images(data, {"train": {"per_class": dict.fromkeys(names, 0)}})


def recorded_images(data: Data, split: Mapping[str, Any]) -> ImageTask:
    """Return the task that the record of a split describes, without images: enough for networks and costs."""
    channels, size = data.expected_channels, data.image_size
    none = ImageArray(np.zeros((0, channels, size, size), np.uint8), np.zeros(0, np.int64))
    dataset = Dataset(
        name=data.source,
        classes=tuple(split["train"]["per_class"]),
        channels=channels,
        image_size=size,
        train=none,
        val=none,
        split=dict(split),
        test=lambda: none,
    )
    return ImageTask(dataset, data)


def class_names(source: ImageSource) -> tuple[str, ...]:
    """Return the names of the classes of a source, of which no image is read."""
    if source.data.source == "digits":
        return load_digits(seed=0).classes
    if source.data.source != "folder":
        return load_images(source).dataset.classes
    root = _folder(source.path, source.data)
    for part in ("train", "test", "val"):
        if (root / part).is_dir() and (found := class_folders(root / part)):
            return ordered_classes(list(found), source.data.class_order)
    raise ValueError(f"{root} has no class folders in train/, test/ or val/")


@dataclass(frozen=True, slots=True)
class HeldOutImages:
    """The test images of a data set, for an evaluation alone."""

    images: Images
    classes: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def batches(self, batch_size: int, mean: Sequence[float], std: Sequence[float], workers: int = 0) -> Iterable[Any]:
        """Return all images in order, normalised."""
        return eval_batches(self.images, batch_size, mean, std, workers=workers)


def held_out_images(
    data: Data,
    path: Path | None,
    *,
    image_size: int,
    channels: int,
    machine: Machine,
    classes: Sequence[str] | None = None,
) -> HeldOutImages:
    """Return the test images of the digits or of a folder; of `train/`, only the names of classes are read."""
    if data.source == "digits" and path is None:
        digits = load_digits(seed=0)
        if (digits.image_size, digits.channels) != (image_size, channels):
            raise ValueError(
                f"the network takes images of {image_size} pixels and {channels} channels, but the digits have "
                f"{digits.image_size} and {digits.channels}; give --data DIR"
            )
        return HeldOutImages(digits.open_test(), digits.classes)
    if data.source not in ("digits", "folder"):
        asked = data.model_copy(update={"image_size": image_size, "channels": channels, "leaks": "allow"})
        dataset = load_images(ImageSource(asked, 0, path, machine)).dataset
        return HeldOutImages(dataset.open_test(), dataset.classes, dataset.remarks)
    found = load_test_folder(
        _folder(path, data),
        image_size=image_size,
        classes=classes,
        channels=1 if channels == 1 else 3,
        class_order=data.class_order,
        max_bytes=machine.image_bytes,
    )
    return HeldOutImages(found.images, found.classes, found.remarks)


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What the names and headers of a folder's training images say, before any image is decoded."""

    train: int
    classes: int
    shorter_side: int
    """Median of the shorter sides in pixels, of up to 500 images."""


def folder_facts(root: Path, data: Data = _PLAIN) -> FolderFacts:
    """Return the facts of the images that `data.source` reads from a folder; a ValueError says what it cannot read."""
    with _settings_named():
        images, classes = _training_images(root, data)
    pillow = import_module("PIL.Image")
    spread = np.unique(np.linspace(0, len(images) - 1, min(500, len(images))).astype(int))
    sides = []
    for index in spread.tolist():
        try:
            opened = images.path(index) if isinstance(images, Files) else io.BytesIO(images.content(index))
            with pillow.open(opened) as image:
                sides.append(min(image.size))
        except (OSError, ValueError):  # found, and named, when the images are read
            continue
    if not sides:
        raise ValueError(f"no training image in {root} can be read")
    return FolderFacts(len(images), classes, int(np.median(sides)))


def _training_images(root: Path, data: Data) -> tuple[Source, int]:
    """Return the training images of a folder, none of them read, and the number of classes."""
    if not root.is_dir():
        raise ValueError(f"there is no directory {root}; name the one that holds train/ and test/ or val/")
    match data.source:
        case "shards":
            part, _ = shard_parts(root)
            return part.source, len(part.classes)
        case "hf":
            part, *_ = table_parts(root, data.image_column, data.label_column)
            return part.source, len(part.classes)
    if not (root / "train").is_dir():
        raise ValueError(f"{root} has no train/; images are looked for in train/<class>/")
    found = walk_classes(root / "train", "text")
    return Files(root / name for name in found.names), len(found.classes)


def joined_images(first: Images, second: Images) -> Images:
    """Return two sets of images as one."""
    if isinstance(first, Photos) and isinstance(second, Photos):
        return _JoinedPhotos(first, second)
    pixels = np.concatenate([part.load(np.arange(len(part))).numpy() for part in (first, second)])
    return ImageArray(pixels, np.concatenate([first.labels, second.labels]))


class _JoinedPhotos:
    """Two sets of photographs as one; positions of the second follow those of the first."""

    def __init__(self, first: Photos, second: Photos) -> None:
        self._parts = first, second
        self.labels = np.concatenate([first.labels, second.labels])
        self.image_size, self.channels = first.image_size, first.channels
        self.in_memory = first.in_memory and second.in_memory
        self.broken = {**first.broken, **{len(first) + at: fault for at, fault in second.broken.items()}}

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return the file at this position."""
        part, at = self._place(range(len(self))[index])
        return part.path(at)

    def photo(self, index: int) -> Any:
        """Return the photograph at this position."""
        part, at = self._place(index)
        return part.photo(at)

    def load(self, indices: Indices | Sequence[int]) -> Tensor:
        """Return the images at these positions."""
        pixels, faults = self.read(indices)
        refuse_broken(faults)
        return pixels

    def read(self, indices: Indices | Sequence[int]) -> tuple[Tensor, dict[int, BrokenImage]]:
        """Return what `load` does, with the broken ones among them by position."""
        chosen, first = np.asarray(indices), len(self._parts[0])
        pixels = torch.zeros((len(chosen), self.channels, self.image_size, self.image_size), dtype=torch.uint8)
        faults: dict[int, BrokenImage] = {}
        for part, offset, rows in ((self._parts[0], 0, chosen < first), (self._parts[1], first, chosen >= first)):
            if rows.any():
                found, broken = part.read(chosen[rows] - offset)
                pixels[torch.from_numpy(rows)] = found
                faults |= {offset + at: fault for at, fault in broken.items()}
        return pixels, faults

    def _place(self, index: int) -> tuple[Photos, int]:
        first, second = self._parts
        return (first, index) if index < len(first) else (second, index - len(first))
