"""Image folders in ImageNet's layout, `train/<class>/*` beside `test/<class>/*` or `val/<class>/*`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from nasx.data.dataset import Dataset, Indices
from nasx.data.splits import images_to_hold_out, split_record, stratified_split

MEMORY_BOUND = 4 * 2**30
"""Bytes up to which the decoded images of a part are kept; those of a larger part are decoded whenever asked for."""

SMALL = 64
"""Pixels up to which images are used whole; of larger ones, the margin is cut off."""


class ImageFiles:
    """Labelled image files, read as RGB: shorter side resized, then the centre cropped to `image_size`.

    Up to 64 pixels the crop is as long as the shorter side, and images that have the size already are not resampled;
    above, it is 224/256 of it, as published evaluations of photographs have it. Nothing is read before the first
    `load`; it reads all where `in_memory` is true. A file that is no image is a ValueError that names it.
    """

    def __init__(self, paths: Sequence[Path], labels: NDArray[np.int64], image_size: int, *, in_memory: bool) -> None:
        self.labels = labels
        self.image_size = image_size
        self.in_memory = in_memory
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, indices: Indices | Sequence[int]) -> Tensor:
        """Return the images at these positions, uint8 (B, 3, image_size, image_size)."""
        if self.in_memory:
            return self._pixels[torch.as_tensor(indices, dtype=torch.long)]
        return _decode_all([self._paths[index] for index in indices], self.image_size)

    def photo(self, index: int) -> Any:
        """Return the photograph at this position as a PIL image in RGB, at its own size."""
        return _decode(self._paths[index])

    @cached_property
    def _pixels(self) -> Tensor:
        return _decode_all(self._paths, self.image_size)


def load_image_folder(
    root: Path, *, image_size: int, seed: int, val_images: int | None = None, val_fraction: float = 0.1
) -> Dataset:
    """Return the data set under a directory, with validation images split off `train` by `seed`.

    The test images are those of `test/`, or of `val/` where there is no `test/`: what is called val there was the
    test set of published tables, so nothing may be chosen on it. `val_images` counts the images to split off; without
    it, `val_fraction` of `train` is. Members are ordered by name. Raises ValueError, before any image is read, for
    a layout or a split that does not fit.
    """
    root = Path(root)
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, but got {image_size}")
    if not root.is_dir():
        raise ValueError(f"there is no directory {root}; name the one that holds train/ and test/ or val/")
    held_out = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if not (root / "train").is_dir():
        raise ValueError(f"{root} has no train/; images are looked for in train/<class>/")
    if held_out is None:
        raise ValueError(f"{root} has neither test/ nor val/; the final evaluation needs one of them")
    train, test = _list_members(root, "train"), _list_members(root, held_out)
    for name in sorted(set(train.classes) ^ set(test.classes)):
        where, other = ("train", held_out) if name in train.classes else (held_out, "train")
        raise ValueError(f"{root} has the class {name!r} in {where}/ but not in {other}/; both need the same classes")

    n_val = images_to_hold_out(len(train.names), val_fraction) if val_images is None else val_images
    fitted, chosen = (train.take(part) for part in stratified_split(train.labels, n_val, seed, classes=train.classes))
    opened = partial(_open, root=root, image_size=image_size)
    parts = {"train": fitted, "val": chosen, "test": test}
    return Dataset(
        name=root.resolve().name,
        classes=train.classes,
        channels=3,
        image_size=image_size,
        train=opened(fitted),
        val=opened(chosen),
        split=split_record(
            seed=seed,
            rule=f"test: all of {held_out}/; val: {n_val} of train/, stratified, by seed",
            classes=train.classes,
            parts={part: (members.names, members.labels) for part, members in parts.items()},
        ),
        test=partial(opened, test),
    )


@dataclass(frozen=True, slots=True)
class _Members:
    """The files of one part: names relative to the root with forward slashes, and the class of each."""

    classes: tuple[str, ...]
    names: list[str]
    labels: NDArray[np.int64]

    def take(self, indices: Indices) -> "_Members":
        return _Members(self.classes, [self.names[index] for index in indices], self.labels[indices])


def _list_members(root: Path, part: str) -> _Members:
    folder = _torchvision("datasets.folder")
    directory = root / part
    classes = tuple(sorted(path.name for path in directory.iterdir() if path.is_dir()))
    if not classes:
        raise ValueError(f"{directory} has no class folders; images are looked for in {part}/<class>/")
    found = folder.make_dataset(
        directory,
        {name: label for label, name in enumerate(classes)},
        extensions=folder.IMG_EXTENSIONS,
        allow_empty=True,
    )
    members = sorted((Path(path).relative_to(root).as_posix(), label) for path, label in found)
    labels = np.array([label for _, label in members], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        empty = directory / classes[int(np.argmin(counts))]
        raise ValueError(
            f"the class folder {empty} holds no image ({', '.join(folder.IMG_EXTENSIONS)}); fill or remove it"
        )
    return _Members(classes, [name for name, _ in members], labels)


def _open(members: _Members, *, root: Path, image_size: int) -> ImageFiles:
    in_memory = len(members.names) * 3 * image_size**2 <= MEMORY_BOUND
    return ImageFiles([root / name for name in members.names], members.labels, image_size, in_memory=in_memory)


def _decode_all(paths: Sequence[Path], image_size: int) -> Tensor:
    pixels = np.empty((len(paths), 3, image_size, image_size), dtype=np.uint8)
    transforms = _torchvision("transforms.functional")
    shorter_side = image_size if image_size <= SMALL else image_size * 256 // 224

    def decode(row: int) -> None:
        image = _decode(paths[row])
        if image.size != (shorter_side, shorter_side):
            image = transforms.resize(image, shorter_side, transforms.InterpolationMode.BICUBIC)
        pixels[row] = np.asarray(transforms.center_crop(image, image_size)).transpose(2, 0, 1)

    # Pillow decodes outside of Python's global lock. A worker process is one of several and keeps to one core.
    with ThreadPoolExecutor(1 if get_worker_info() else None) as pool:
        for _ in pool.map(decode, range(len(paths))):
            pass
    return torch.from_numpy(pixels)


def _decode(path: Path) -> Any:
    try:
        return _torchvision("datasets.folder").pil_loader(path)
    except (OSError, SyntaxError) as error:  # Pillow reports a damaged PNG as a SyntaxError
        raise ValueError(f"{path} cannot be read as an image: {error}; replace or remove it") from error


def _torchvision(module: str) -> Any:
    try:
        return import_module(f"torchvision.{module}")
    except ImportError as error:
        raise ImportError("reading image folders needs torchvision: pip install 'nasx[recipes]'") from error
