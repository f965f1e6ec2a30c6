"""Image folders in ImageNet's layout, `train/<class>/*` beside `test/<class>/*` or `val/<class>/*`."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from nasx.data.dataset import Dataset, Indices
from nasx.data.decode import decode
from nasx.data.faults import BrokenImage, BrokenImageError, note_broken, refuse_broken
from nasx.data.leaks import Leaks, copied_files
from nasx.data.readers import now_reading
from nasx.data.splits import images_to_hold_out, split_record, stratified_split

SMALL = 64
"""Pixels up to which images are used whole; of larger ones, the margin is cut off."""


class ImageFiles:
    """Labelled image files, read as RGB: shorter side resized, then the centre cropped to `image_size`.

    Up to 64 pixels the crop is as long as the shorter side, and images that have the size already are not resampled;
    above, it is 224/256 of it, as published evaluations of photographs have it. Of other modes and sizes `decode`
    says what becomes of them. Nothing is read before the first `load`, `read` or `keep`, which read all where
    `in_memory` is true. What cannot be read is a BrokenImageError from `load` and `photo`, and is told apart by
    `read`.
    """

    def __init__(self, paths: Iterable[Path], labels: NDArray[np.int64], image_size: int, *, in_memory: bool) -> None:
        self.labels = labels
        self.image_size = image_size
        self.in_memory = in_memory
        self.broken: dict[int, BrokenImage] = {}
        # One buffer instead of a million objects, which each worker process would copy as it counts references.
        encoded = [os.fsencode(path) for path in paths]
        self._paths = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._kept: tuple[Tensor, dict[int, BrokenImage]] | None = None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def path(self, index: int) -> Path:
        """Return the file at this position."""
        index = range(len(self))[index]
        return Path(os.fsdecode(self._paths[self._ends[index] : self._ends[index + 1]]))

    def load(self, indices: Indices | Sequence[int]) -> Tensor:
        """Return the images at these positions, uint8 (B, 3, image_size, image_size)."""
        pixels, faults = self.read(indices)
        refuse_broken(faults)
        return pixels

    def read(self, indices: Indices | Sequence[int]) -> tuple[Tensor, dict[int, BrokenImage]]:
        """Return what `load` does, with the broken ones among them by position; their pixels mean nothing."""
        if not self.in_memory:
            return self._decode(indices)
        pixels, faults = self.keep()
        return (
            pixels[torch.as_tensor(indices, dtype=torch.long)],
            {int(index): faults[int(index)] for index in indices if int(index) in faults},
        )

    def keep(self, on_read: Callable[[], object] = lambda: None) -> tuple[Tensor, dict[int, BrokenImage]]:
        """Read all images into memory, unless that is done, and return what `read` does; `on_read` follows each."""
        if self._kept is None:
            self._kept = self._decode(range(len(self)), on_read)
        return self._kept

    def photo(self, index: int) -> Any:
        """Return the photograph at this position as a PIL image in RGB, at its own size."""
        return decode(self.path(index))

    def _decode(
        self, indices: Indices | Sequence[int], on_read: Callable[[], object] = lambda: None
    ) -> tuple[Tensor, dict[int, BrokenImage]]:
        size = self.image_size
        pixels = np.zeros((len(indices), 3, size, size), dtype=np.uint8)
        transforms = _torchvision("transforms.functional")
        shorter_side = size if size <= SMALL else size * 256 // 224

        def read(row: int) -> BrokenImage | None:
            now_reading(int(indices[row]))
            try:
                image = self.photo(indices[row])
            except BrokenImageError as error:
                return error.broken[0]
            if image.size != (shorter_side, shorter_side):
                image = transforms.resize(image, shorter_side, transforms.InterpolationMode.BICUBIC)
            pixels[row] = np.asarray(transforms.center_crop(image, size)).transpose(2, 0, 1)
            return None

        faults: dict[int, BrokenImage] = {}
        # Pillow decodes outside of Python's global lock. A worker process is one of several and keeps to one core.
        with ThreadPoolExecutor(1 if get_worker_info() else None) as pool:
            results: Any = pool.map(read, range(len(indices)))
            with closing(results):  # which cancels the rest when interrupted
                for row, fault in enumerate(results):
                    if fault:
                        faults[int(indices[row])] = fault
                    on_read()
        return torch.from_numpy(pixels), faults


def load_image_folder(
    root: Path,
    *,
    image_size: int,
    seed: int,
    val_images: int | None = None,
    val_fraction: float = 0.1,
    leaks: Leaks = "refuse",
    max_bytes: int = 4 << 30,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Dataset:
    """Return the data set under a directory, with validation images split off `train` by `seed`.

    The test images are those of `test/`, or of `val/` where there is no `test/`: what is called val there was the
    test set of published tables, so nothing may be chosen on it. `val_images` counts the images to split off; without
    it, `val_fraction` of `train` is. Members are ordered by name.

    Files of `train/` with the bytes of a test file are refused by name, for they would flatter the final accuracy;
    `leaks="drop"` leaves them out before the split and names them in its record, `leaks="allow"` does not look.

    Training images, and validation images, are read here and kept where all of the part fit in `max_bytes`; after each
    of them `on_progress(done, total)` is called. Those of a larger part are decoded whenever they are asked for. Test
    images are not decoded here, and are kept by the same rule once they are asked for.

    Raises ValueError, before any image is decoded, for a layout, a leak or a split that does not fit and for an empty
    test file; BrokenImageError for a validation image that cannot be read, and for more than 0.1 % of such training
    images. Fewer than that are told by a BrokenImageWarning each and in `Dataset.broken`.
    """
    root = Path(root)
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, but got {image_size}")
    if leaks not in get_args(Leaks):
        raise ValueError(f"leaks is one of {', '.join(get_args(Leaks))}, but got {leaks!r}")
    train, test, held_out = _list_parts(root)
    record: dict[str, Any] = {}
    if leaks == "allow":
        record["leaks"] = "not looked for"
    elif copies := copied_files(root, train.names, test.names):
        pairs = [f"{train.names[ours]} = {test.names[theirs]}" for ours, theirs in copies.items()]
        if leaks == "refuse":
            raise ValueError(
                f"{len(pairs):,} files of {root / 'train'} are copies of test images: {', '.join(pairs[:3])}"
                f"{', ...' if len(pairs) > 3 else ''}; remove one of each two, or leave them out of training and "
                "validation by leaks='drop', or keep them by leaks='allow'"
            )
        record["leaks"] = {"dropped": [train.names[ours] for ours in copies]}
        train = train.take(np.setdiff1d(np.arange(len(train.names)), list(copies)))
        if emptied := train.empty_classes():
            raise ValueError(f"all images of the class {emptied[0]!r} in {root / 'train'} are copies of test images")

    n_val = images_to_hold_out(len(train.names), val_fraction) if val_images is None else val_images
    fitted, chosen = (train.take(part) for part in stratified_split(train.labels, n_val, seed, classes=train.classes))
    opened = partial(_open, root=root, image_size=image_size, max_bytes=max_bytes)
    parts = {"train": fitted, "val": chosen, "test": test}
    record = {
        **split_record(
            seed=seed,
            rule=f"test: all of {held_out}/; val: {n_val} of train/, stratified, by seed",
            classes=train.classes,
            parts={part: (members.names, members.labels) for part, members in parts.items()},
        ),
        **record,
    }
    training, validation = opened(fitted), opened(chosen)
    _keep(training, validation, on_progress)
    return Dataset(
        name=root.resolve().name,
        classes=train.classes,
        channels=3,
        image_size=image_size,
        train=training,
        val=validation,
        split=record,
        test=partial(opened, test),
    )


def _keep(training: ImageFiles, validation: ImageFiles, on_progress: Callable[[int, int], object]) -> None:
    kept = [images for images in (training, validation) if images.in_memory]
    total, done = sum(map(len, kept)), count(1)
    for images in kept:
        _, faults = images.keep(lambda: on_progress(next(done), total))
        if images is training:
            note_broken(images, faults)
        else:
            refuse_broken(faults)


@dataclass(frozen=True, slots=True)
class _Members:
    """The files of one part: names relative to the root with forward slashes, and the class of each."""

    classes: tuple[str, ...]
    names: list[str]
    labels: NDArray[np.int64]

    def take(self, indices: Indices) -> "_Members":
        return _Members(self.classes, [self.names[index] for index in indices], self.labels[indices])

    def empty_classes(self) -> list[str]:
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return [self.classes[label] for label in np.flatnonzero(counts == 0)]


def _list_parts(root: Path) -> tuple[_Members, _Members, str]:
    """Return the members of `train`, those of the test set, and the name of its directory."""
    if not root.is_dir():
        raise ValueError(f"there is no directory {root}; name the one that holds train/ and test/ or val/")
    held_out = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if not (root / "train").is_dir():
        raise ValueError(f"{root} has no train/; images are looked for in train/<class>/")
    if held_out is None:
        raise ValueError(f"{root} has neither test/ nor val/; the final evaluation needs one of them")
    train, test = _list_members(root, "train"), _list_members(root, held_out)
    if differing := sorted(set(train.classes) ^ set(test.classes)):
        name, more = differing[0], f" ({len(differing)} classes differ)" if len(differing) > 1 else ""
        where, other = ("train", held_out) if name in train.classes else (held_out, "train")
        raise ValueError(
            f"{root} has the class {name!r} in {where}/ but not in {other}/{more}; both need the same classes"
        )
    if empty := [name for name in test.names if not (root / name).stat().st_size]:
        more = f" ({len(empty):,} such in all)" if len(empty) > 1 else ""
        raise ValueError(f"the test image {root / empty[0]} is empty{more}; replace or remove it")
    return train, test, held_out


def _list_members(root: Path, part: str) -> _Members:
    folder = _torchvision("datasets.folder")
    directory = root / part
    suffixes = (*folder.IMG_EXTENSIONS, ".gif")
    classes = tuple(sorted(path.name for path in directory.iterdir() if path.is_dir()))
    if not classes:
        raise ValueError(f"{directory} has no class folders; images are looked for in {part}/<class>/")
    found = folder.make_dataset(
        directory, {name: label for label, name in enumerate(classes)}, extensions=suffixes, allow_empty=True
    )
    below = len(str(directory)) + 1  # strings, because a million paths take their time
    members = sorted((f"{part}/{path[below:].replace(os.sep, '/')}", label) for path, label in found)
    labels = np.array([label for _, label in members], dtype=np.int64)
    listed = _Members(classes, [name for name, _ in members], labels)
    if empty := listed.empty_classes():
        raise ValueError(
            f"the class folder {directory / empty[0]} holds no image ({', '.join(suffixes)}); fill or remove it"
        )
    return listed


def _open(members: _Members, *, root: Path, image_size: int, max_bytes: int) -> ImageFiles:
    in_memory = len(members.names) * 3 * image_size**2 <= max_bytes
    return ImageFiles((root / name for name in members.names), members.labels, image_size, in_memory=in_memory)


def _torchvision(module: str) -> Any:
    try:
        return import_module(f"torchvision.{module}")
    except ImportError as error:
        raise ImportError("reading image folders needs torchvision: pip install 'nasx[recipes]'") from error
