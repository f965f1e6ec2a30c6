"""Image folders in ImageNet's layout, `train/<class>/*` beside `test/<class>/*` or `val/<class>/*`."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nasx.data.assemble import Options, Part, assemble, check_image_size
from nasx.data.broken import refuse_broken
from nasx.data.dataset import Dataset
from nasx.data.decode import Channels
from nasx.data.headers import look_at
from nasx.data.leaks import Leaks
from nasx.data.photos import PhotoSet, resized_side
from nasx.data.sources import Files
from nasx.data.walk import (
    ClassFolders,
    ClassOrder,
    class_folders,
    order_remark,
    ordered_classes,
    walk_classes,
)


def load_image_folder(
    root: Path,
    *,
    image_size: int,
    seed: int,
    channels: Channels | None = None,
    class_order: ClassOrder = "text",
    val_images: int | None = None,
    val_fraction: float = 0.1,
    leaks: Leaks = "refuse",
    max_bytes: int = 4 << 30,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    on_check: Callable[[int, int], object] = lambda done, total: None,
) -> Dataset:
    """Return the data set under a directory, with validation images split off `train` by `seed`.

    The test images are those of `test/`, or of `val/` where `test/` is not there or has no class folders (as in
    Kaggle's ImageNet): what is called val there was the test set of published tables, so nothing may be chosen on it.
    `val_images` counts the images to split off; without it, `val_fraction` of `train` is. Members are ordered by name.

    Images are RGB where any has colours, else grey; `channels` of 3 or 1 converts them. Classes are numbered by their
    names as texts, as torchvision does; `class_order="number"` takes 2 before 10. `Dataset.remarks` says what was left
    out and assumed.

    The header and both ends of every file, test images included, are looked at before anything is decoded, and
    `on_check(done, total)` follows each: what is no image, truncated or beyond all measure is found here.

    Files of `train/` with the bytes of a test file are refused by name, for they would flatter the final accuracy;
    `leaks="drop"` leaves them out before the split and names them in its record, `leaks="allow"` does not look.

    Training images, and validation images, are read here and kept where all of the part fit in `max_bytes`; after each
    of them `on_progress(done, total)` is called. Those of a larger part are decoded whenever they are asked for. Test
    images are not decoded here, and are kept by the same rule once they are asked for.

    Raises ValueError, before any image is decoded, for a layout, a leak or a split that does not fit; BrokenImageError
    for a validation or test image that cannot be read, and for more than 0.1 % of such training images. Fewer than that
    give a BrokenImageWarning each and are in `Dataset.broken`.
    """
    options = Options(
        image_size=image_size,
        seed=seed,
        channels=channels,
        val_images=val_images,
        val_fraction=val_fraction,
        leaks=leaks,
        max_bytes=max_bytes,
        on_progress=on_progress,
        on_check=on_check,
    )
    root = Path(root)
    held_out = _test_part(root)
    if not (root / "train").is_dir():
        raise ValueError(f"{root} has no train/; images are looked for in train/<class>/")
    train, test = walk_classes(root / "train", class_order), walk_classes(root / held_out.name, class_order)
    if differing := sorted(set(train.classes) ^ set(test.classes)):
        name, more = differing[0], f" ({len(differing)} classes differ)" if len(differing) > 1 else ""
        where, other = ("train", held_out.name) if name in train.classes else (held_out.name, "train")
        raise ValueError(
            f"{root} has the class {name!r} in {where}/ but not in {other}/{more}; both need the same classes"
        )
    remarks = [*held_out.remarks, *_assumed(train.classes, class_order), *_left_out(train), *_left_out(test)]
    record = {"class_order": class_order}
    parts = _part(root, train, str(root / "train")), _part(root, test, f"{held_out.name}/")
    return assemble(root.resolve().name, *parts, options, remarks=remarks, record=record)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The test images of a folder, with what is known of their classes; `load_test_folder` makes one."""

    images: PhotoSet
    classes: tuple[str, ...]
    """Names in the order of the labels."""
    per_class: dict[str, int]
    """How many images there are of each class."""
    remarks: tuple[str, ...]


def load_test_folder(
    root: Path,
    *,
    image_size: int,
    classes: Sequence[str] | None = None,
    channels: Channels | None = None,
    class_order: ClassOrder = "text",
    max_bytes: int = 4 << 30,
    on_check: Callable[[int, int], object] = lambda done, total: None,
) -> HeldOut:
    """Return the test images of a directory, for an evaluation alone: of `train/` nothing is needed.

    They are those that `load_image_folder` tests on. Labels count the given `classes`; without them the class folders'
    names, of `train/` where there is one, in `class_order`. Classes without a test image are allowed. Raises ValueError
    for a layout that does not fit and for a folder that is none of the classes, BrokenImageError for an image that
    cannot be read by its header and ends.
    """
    check_image_size(image_size)
    root = Path(root)
    held_out = _test_part(root)
    found = walk_classes(root / held_out.name, class_order)
    remarks = [*held_out.remarks, *_left_out(found)]
    if classes is None:
        train = class_folders(root / "train") if (root / "train").is_dir() else {}
        classes = ordered_classes(list(train), class_order) if train else found.classes
        remarks += _assumed(tuple(classes), class_order)
    place = {name: label for label, name in enumerate(classes)}
    if unknown := [name for name in found.classes if name not in place]:
        raise ValueError(
            f"{found.directory / unknown[0]} is none of the {len(classes)} classes ({', '.join(map(str, classes[:5]))}"
            f"{', ...' if len(classes) > 5 else ''}); rename or remove it, or name the classes that the network has"
        )
    if missing := [name for name in classes if name not in found.classes]:
        remarks.append(f"{len(missing):,} of {len(classes):,} classes have no test image, such as {missing[0]!r}")
    part = _part(root, found, f"{held_out.name}/")
    labels = np.array([place[found.classes[label]] for label in part.labels], dtype=np.int64)
    done = iter(range(1, len(labels) + 1))
    headers = look_at(part.source, resized_side(image_size), lambda: on_check(next(done), len(labels)))
    refuse_broken(headers.faults)
    channels = channels or (1 if headers.grey.all() else 3)
    in_memory = len(labels) * channels * image_size**2 <= max_bytes
    images = PhotoSet(part.source, labels, image_size, in_memory=in_memory, channels=channels)
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    return HeldOut(images, tuple(classes), dict(zip(classes, counts, strict=True)), tuple(remarks))


class DataWarning(UserWarning):
    """Something about data that may not be what it should: files that are left out, an order that is assumed."""


def _assumed(classes: tuple[str, ...], class_order: ClassOrder) -> list[str]:
    remark = order_remark(classes, class_order)
    if remark:
        warnings.warn(remark, DataWarning, stacklevel=3)
    return [remark] if remark else []


def _left_out(part: ClassFolders) -> list[str]:
    remarks = [f"{part.directory.name}/: {remark}" for remark in part.skipped_files.remarks()]
    if part.skipped_files.unreadable:
        warnings.warn(remarks[0], DataWarning, stacklevel=3)
    return remarks


@dataclass(frozen=True, slots=True)
class _TestPart:
    name: str
    remarks: tuple[str, ...] = ()


def _test_part(root: Path) -> _TestPart:
    """Return the name of the directory that is tested on."""
    if not root.is_dir():
        raise ValueError(f"there is no directory {root}; name the one that holds train/ and test/ or val/")
    there = [name for name in ("test", "val") if (root / name).is_dir()]
    if not there:
        raise ValueError(f"{root} has neither test/ nor val/; the final evaluation needs one of them")
    if there == ["test", "val"] and not class_folders(root / "test"):
        return _TestPart("val", ("test/ has no class folders, so its images have no labels, and val/ is tested on",))
    return _TestPart(there[0])


def _part(root: Path, found: ClassFolders, called: str) -> Part:
    source = Files(root / name for name in found.names)
    return Part(called, source, found.names, np.array(found.labels, dtype=np.int64), found.classes)
