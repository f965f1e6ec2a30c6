"""Where images come from: data sets that any process can load, and what is known of them before they are read."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from nasx.data import (
    Dataset,
    Files,
    ImageArray,
    Images,
    Source,
    eval_batches,
    load_digits,
    load_hf_folder,
    load_image_folder,
    load_shards,
    load_test_folder,
)
from nasx.data.hf import table_parts
from nasx.data.shards import shard_parts
from nasx.data.walk import class_folders, ordered_classes, walk_classes
from nasx.pipeline.config import Data
from nasx.pipeline.images import ImageTask, of_settings
from nasx.pipeline.machine import Machine

OnProgress = Callable[[int, int], object]

_LOADERS: dict[str, Callable[..., Dataset]] = {
    "folder": load_image_folder,
    "shards": load_shards,
    "hf": load_hf_folder,
}


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
        raise ValueError(of_settings(str(error))) from error


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
    """What a folder's training images are, by their names and headers alone, and the size that they are wanted at."""

    train: int
    classes: int
    shorter_side: int
    """Median of the shorter sides in pixels, of up to 500 images."""
    image_size: int | None = None
    """The size that the settings ask for."""


def folder_facts(root: Path, data: Data) -> FolderFacts:
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
    asked = data.image_size if "image_size" in data.model_fields_set else None
    return FolderFacts(len(images), classes, int(np.median(sides)), asked)


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
