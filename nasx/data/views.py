"""Random views of photographs, one by one: resized crops, RandAugment and colour jitter as timm draws them."""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from nasx.data.augment import Augment
from nasx.data.dataset import Indices, Photos
from nasx.data.seeding import derived_seed, globals_kept, seed_globals


def random_views(
    photos: Photos, indices: Indices, augment: Augment, mean: tuple[float, ...], seeds: Sequence[int]
) -> Tensor:
    """Return a view of each of these photographs, uint8 (B, 3, image_size, image_size).

    A view is a function of `seeds` and of the photograph's index alone. Without a resized crop the largest centred
    square is taken. `mean`, of images in 0..1, fills what a rotation or a shift uncovers.
    """
    transform = _transform(photos.image_size, augment, mean)
    views = []
    with globals_kept():
        for index in indices.tolist():
            seed_globals(derived_seed(*seeds, index))
            views.append(transform(photos.photo(index)))
    return torch.stack(views)


@lru_cache(maxsize=4)
def _transform(image_size: int, augment: Augment, mean: tuple[float, ...]) -> Any:
    whole = (1.0, 1.0)
    return timm_data("resized_crop, auto_augment and color_jitter").create_transform(
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


def timm_data(what: str) -> Any:
    """Return `timm.data`, or raise the ImportError that says what needs it and how to install it."""
    try:
        return import_module("timm.data")
    except ImportError as error:
        raise ImportError(f"{what} need timm: pip install 'nasx[recipes]'") from error
