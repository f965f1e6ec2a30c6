"""From labelled images of a training and of a test part to a data set: checks, leak guard, split and its record.

Image folders, tar shards and tables of Hugging Face `datasets` all end here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from nasx.data.broken import note_broken, printable, refuse_broken
from nasx.data.dataset import Dataset, Indices
from nasx.data.decode import Channels
from nasx.data.headers import Headers, look_at
from nasx.data.leaks import Leaks, find_copies
from nasx.data.photos import PhotoSet, resized_side
from nasx.data.sources import Source
from nasx.data.splits import images_to_hold_out, split_record, stratified_split

Progress = Callable[[int, int], object]
"""Called with the number of images done and of all."""

_FEW = 500  # validation images below which chance is worth a remark


@dataclass(frozen=True, slots=True)
class Part:
    """Labelled images of one part: what messages call it, where they lie, their names, the class of each."""

    called: str
    source: Source
    names: list[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def take(self, indices: Indices) -> "Part":
        """Return the images at these positions."""
        names = [self.names[index] for index in indices]
        return Part(self.called, self.source.take(indices), names, self.labels[indices], self.classes)

    def empty_classes(self) -> list[str]:
        """Return the classes without an image."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return [self.classes[label] for label in np.flatnonzero(counts == 0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What every loader of photographs can be asked for; `load_image_folder` documents it."""

    image_size: int
    seed: int
    channels: Channels | None = None
    val_images: int | None = None
    val_fraction: float = 0.1
    leaks: Leaks = "refuse"
    max_bytes: int = 4 << 30
    on_progress: Progress = lambda done, total: None
    on_check: Progress = lambda done, total: None

    def __post_init__(self) -> None:
        check_image_size(self.image_size)
        if self.leaks not in get_args(Leaks):
            raise ValueError(f"leaks is one of {', '.join(get_args(Leaks))}, but got {self.leaks!r}")
        if self.channels not in (None, *get_args(Channels)):
            raise ValueError(f"channels is 1 or 3, or None to read images as they are, but got {self.channels!r}")


def check_image_size(image_size: int) -> None:
    """Refuse, as ValueError, sizes that no image has."""
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, but got {image_size}")


def assemble(
    name: str,
    train: Part,
    test: Part,
    options: Options,
    *,
    remarks: Sequence[str] = (),
    record: Mapping[str, Any] = MappingProxyType({}),
) -> Dataset:
    """Return the data set of a training and a test part, after everything that can be checked was.

    `record` goes into the record of the split.
    """
    where = train.called
    if len(train.classes) < 2:
        raise ValueError(f"{where} has one class, {train.classes[0]!r}; telling classes apart needs at least two")
    seen, test_seen = _read_headers(train.source, test.source, options)
    leaked: dict[str, Any] = {}
    if options.leaks == "allow":
        leaked["leaks"] = "not looked for"
    elif copies := find_copies((train.source, seen), (test.source, test_seen)):
        pairs = [f"{printable(train.names[ours])} = {printable(test.names[theirs])}" for ours, theirs in copies.items()]
        if options.leaks == "refuse":
            raise ValueError(
                f"{len(pairs):,} files of {where} are copies of test images: {', '.join(pairs[:3])}"
                f"{', ...' if len(pairs) > 3 else ''}; remove one of each two, or leave them out of training and "
                "validation by leaks='drop', or keep them by leaks='allow'"
            )
        leaked["leaks"] = {"dropped": [printable(train.names[ours]) for ours in copies]}
        kept = np.setdiff1d(np.arange(len(train.names)), list(copies))
        train, seen = train.take(kept), seen.take(kept)
        if emptied := train.empty_classes():
            raise ValueError(
                f"all images of the class {emptied[0]!r} in {where} are copies of test images, so that leaks='drop' "
                "leaves none; add others"
            )

    n_val = options.val_images
    if n_val is None:
        n_val = images_to_hold_out(len(train.names), options.val_fraction)
    elif n_val == 1:
        raise ValueError("one validation image cannot tell networks apart; hold out more: raise val_images")
    indices = stratified_split(train.labels, n_val, options.seed, classes=train.classes)
    channels = options.channels or _channels(seen, test_seen)
    opened = partial(_open, channels=channels, options=options)
    fitted, chosen = (train.take(part) for part in indices)
    looks = {"train": seen.take(indices[0]), "val": seen.take(indices[1]), "test": test_seen}
    parts = {"train": fitted, "val": chosen, "test": test}
    split = {
        **split_record(
            seed=options.seed,
            rule=f"test: all of {test.called}; val: {n_val} of the training images, stratified, by seed",
            classes=train.classes,
            parts={part: (members.names, members.labels, looks[part].digest()) for part, members in parts.items()},
        ),
        **leaked,
        **record,
    }
    training, validation = opened(fitted), opened(chosen)
    note_broken(training, looks["train"].faults)
    refuse_broken(looks["val"].faults)
    refuse_broken(looks["test"].faults)
    _keep(training, validation, options.on_progress)
    return Dataset(
        name=name,
        classes=train.classes,
        channels=channels,
        image_size=options.image_size,
        train=training,
        val=validation,
        split=split,
        test=partial(opened, test),
        remarks=(*remarks, *_remarks(train, n_val, seen, options.image_size)),
    )


def _read_headers(train: Source, test: Source, options: Options) -> tuple[Headers, Headers]:
    total, done = len(train) + len(test), count(1)
    side = resized_side(options.image_size)

    def on_look() -> None:
        options.on_check(next(done), total)

    return look_at(train, side, on_look), look_at(test, side, on_look)


def _channels(*looks: Headers) -> Channels:
    """Return what the images have: 1 where all that can be read are grey."""
    known = [np.delete(headers.grey, list(headers.faults)) for headers in looks]
    return 1 if all(grey.all() for grey in known) and any(map(len, known)) else 3


def _open(part: Part, *, channels: Channels, options: Options) -> PhotoSet:
    in_memory = len(part.names) * channels * options.image_size**2 <= options.max_bytes
    return PhotoSet(part.source, part.labels, options.image_size, in_memory=in_memory, channels=channels)


def _keep(training: PhotoSet, validation: PhotoSet, on_progress: Progress) -> None:
    kept = [images for images in (training, validation) if images.in_memory]
    total, done = sum(map(len, kept)), count(1)
    for images in kept:
        _, faults = images.keep(lambda: on_progress(next(done), total))
        if images is training:
            note_broken(images, faults)
        else:
            refuse_broken(faults)


def _remarks(train: Part, n_val: int, seen: Headers, image_size: int) -> Iterator[str]:
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if single := [train.classes[label] for label in np.flatnonzero(counts == 1)]:
        more = f" and {len(single) - 3:,} more" if len(single) > 3 else ""
        yield f"classes with a single training image are never validated: {', '.join(single[:3])}{more}"
    if n_val < _FEW:
        points = 100 * 1.96 * 0.5 / n_val**0.5
        yield (
            f"with {n_val:,} validation images an accuracy of 50 % is uncertain by {points:.0f} points either way "
            "(95 %); networks that differ by less cannot be ranked"
        )
    shapes = np.delete(seen.shapes, list(seen.faults), axis=0)
    if len(shapes) and (shapes == shapes[0]).all() and shapes[0, 0] != shapes[0, 1]:
        width, height = shapes[0].tolist()
        used = min(width, height) / max(width, height) * (image_size / resized_side(image_size)) ** 2
        yield (
            f"all training images are {width} x {height} pixels, of which the centred square is used: "
            f"{1 - used:.0%} of each is cut off"
        )
