"""Random views of photographs, one by one: resized crops, RandAugment and colour jitter as timm draws them."""

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from nasx.data.augment import Augment
from nasx.data.broken import BrokenImage, BrokenImageError
from nasx.data.dataset import Indices, Photos
from nasx.data.readers import now_reading
from nasx.data.seeding import derived_seed, globals_kept, seed_globals


def random_views(
    photos: Photos, indices: Indices, copies: Indices, augment: Augment, mean: tuple[float, ...], seeds: Sequence[int]
) -> tuple[Tensor, dict[int, BrokenImage]]:
    """Return a view of each of these photographs, uint8 (B, C, image_size, image_size), and the broken ones by index.

    A view is a function of `seeds`, of the photograph's index and of the number of its copy alone. Without a resized
    crop the largest centred square is taken. `mean`, of images in 0..1, fills what a rotation or a shift uncovers.
    """
    transform = view_transform(photos.image_size, augment, mean)
    mixes = photos.channels == 1 and (augment.auto_augment or "").startswith("augmix")  # of three channels only
    views = torch.zeros((len(indices), photos.channels, photos.image_size, photos.image_size), dtype=torch.uint8)
    faults: dict[int, BrokenImage] = {}
    with globals_kept():
        for row, (index, copy) in enumerate(zip(indices.tolist(), copies.tolist(), strict=True)):
            now_reading(index)
            try:
                photo = photos.photo(index)
            except BrokenImageError as error:
                faults[index] = error.broken[0]
                continue
            seed_globals(derived_seed(*seeds, index, *([copy] if copy else [])))
            if mixes:
                photo = photo.convert("RGB")
            views[row] = transform(photo)[: photos.channels]
    return views, faults


_RAND_PART = re.compile(r"[a-z]+\d+(\.\d+)?|mstdinf")


@lru_cache(maxsize=4)
def view_transform(image_size: int, augment: Augment, mean: tuple[float, ...]) -> Any:
    """Return timm's transform of a PIL image to uint8 (C, image_size, image_size).

    Raises ValueError for an `auto_augment` that timm does not know, ImportError without timm.
    """
    create_transform = timm_data("resized_crop, auto_augment and color_jitter").create_transform
    whole = (1.0, 1.0)
    try:
        policy, *parts = (augment.auto_augment or "").split("-")
        if policy == "rand" and not all(_RAND_PART.fullmatch(part) for part in parts):
            raise ValueError("a part without its number, which timm would pass over")
        transform = create_transform(
            image_size,
            is_training=True,
            scale=augment.resized_crop or whole,
            ratio=(3 / 4, 4 / 3) if augment.resized_crop else whole,
            hflip=0.0,  # flips, normalisation and erasing are the batch's
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.auto_augment,
            interpolation="bicubic",
            mean=mean,
            normalize=False,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"timm has no auto_augment {augment.auto_augment!r}; spell it like 'rand-m9-mstd0.5-inc1'"
        ) from error
    for stage in transform.transforms:
        for op in [*getattr(stage, "ops", ()), *chain.from_iterable(getattr(stage, "policy", ()))]:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
    return transform


def _posterize(image: Any, bits: int, **_: Any) -> Any:
    """Keep the upper bits; at its greatest magnitude timm asks for none of them, which Pillow refuses since 13."""
    mask = 0xFF & ~(0xFF >> bits)
    return image.point([value & mask for value in range(256)] * len(image.getbands()))


def timm_data(what: str) -> Any:
    """Return `timm.data`, or raise the ImportError that says what needs it and how to install it."""
    try:
        return import_module("timm.data")
    except ImportError as error:
        raise ImportError(f"{what} need timm: pip install 'nasx[recipes]'") from error
