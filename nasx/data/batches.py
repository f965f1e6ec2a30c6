"""Batches as a pure function of seed and step, so that any step can be recomputed by any process."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasx._arguments import checked_seed
from nasx._devices import to_device
from nasx.data.augment import Augment
from nasx.data.broken import BrokenImage, BrokenImageError, note_broken
from nasx.data.dataset import ImageArray, Images, Indices, Photos
from nasx.data.readers import read_ahead
from nasx.data.seeding import derived_seed, globals_kept, seed_globals
from nasx.data.views import random_views, timm_data, view_transform

# What a seed is used for; without them, epoch 3 and step 3 would share their random numbers.
_ORDER, _AUGMENTATION, _MIXING, _VIEWS, _SUBSTITUTES = range(5)

_Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_Read = tuple[Tensor, dict[int, BrokenImage]]
T = TypeVar("T")
R = TypeVar("R")


class TrainBatches:
    """Shuffled, augmented, normalised training batches, each a pure function of (seed, step).

    Epoch `step // steps_per_epoch` has its own order; an incomplete last batch is dropped. `mean` and `std` are of
    images in 0..1, per channel. `mixup` and `cutmix` are the alphas of DeiT's mixing, 0 for none; with one of them
    targets are probabilities, smoothed by `label_smoothing`, and `classes` is needed. `part=(rank, world)` yields
    that rank's rows of every batch of `batch_size`, the same to the bit as in the undivided batch. `workers` processes
    read ahead, unless all is in memory; their number changes no batch. Raises ValueError for impossible settings.

    With `repeats` above 1 every image comes that many times in a row, each augmented by itself, and an epoch of as many
    steps has that fraction of the images (Hoffer et al., Augment Your Batch, 2020; DeiT takes 3).

    `mix_group` images share one draw of mixing, by default the whole batch, and the copies of an image go to different
    groups: what DeiT's code does on several processes, each with a part of the batch.

    The place of a photograph that cannot be read is taken by one of its class that can, the first in an order drawn
    from (seed, epoch, photograph), so targets stay as they are and any step can still be recomputed. Each is recorded
    in `broken` of the images and gives a BrokenImageWarning; more than 0.1 % end the steps with BrokenImageError.
    WorkerDied ends them when a worker process dies twice at the same place.

    On another `device` pixels travel as bytes and are augmented, normalised and mixed there, by the same draws; image
    arrays of up to 2 GiB stay on it.
    """

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment = Augment(),  # noqa: B008 - immutable
        classes: int | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        mix_group: int | None = None,
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
        repeats: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        rank, world = part
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but got {batch_size}")
        if batch_size > len(images):
            raise ValueError(
                f"a batch of {batch_size} is larger than the {len(images)} training images; lower batch_size"
            )
        if not 0 <= rank < world:
            raise ValueError(f"part is (rank, world) with 0 <= rank < world, but got {part}")
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} does not divide among {world} processes; choose a multiple")
        if repeats < 1:
            raise ValueError(f"repeats counts the copies of an image and must be at least 1, but got {repeats}")
        lowest, highest = images.labels.min(), images.labels.max()
        if classes is not None and not 0 <= lowest <= highest < classes:
            raise ValueError(f"labels are {lowest} to {highest}, but classes={classes} needs 0 to {classes - 1}")
        seed = checked_seed(seed)
        if augment.of_photos:
            if not isinstance(images, Photos):
                raise ValueError(
                    "`resized_crop`, `auto_augment` and `color_jitter` are of photographs read from files, but these "
                    "images are arrays; use `pad_crop`, `flip`, `rotate`, `zoom` and `erase`"
                )
            view_transform(images.image_size, augment, tuple(mean))  # refuses what timm does not know
        self.steps_per_epoch = len(images) // batch_size
        self._images = images
        self._photos = images if isinstance(images, Photos) else None  # asked once, because it takes long
        self._device = torch.device(device)
        self._resident = _resident(images, self._device)
        self._batch_size = batch_size
        self._seed = seed
        self._augment = augment
        self._mean = tuple(mean)
        self._normalise = _normaliser(mean, std, self._device)
        self._mix_group = batch_size if mix_group is None else mix_group
        if self._mix_group < 1 or batch_size % self._mix_group:
            raise ValueError(f"mix_group must divide batch_size, but got {mix_group} and {batch_size}")
        self._mix = _mixing(mixup, cutmix, label_smoothing, classes, self._mix_group)
        share = batch_size // world
        own = torch.arange(rank * share, (rank + 1) * share)
        numbers = own // self._mix_group
        self._groups = [(group, own[numbers == group]) for group in sorted(set(numbers.tolist()))]
        self._rows = torch.cat([self._with_partners(group, rows) for group, rows in self._groups])
        self._whole = len(own) == batch_size
        self._repeats = repeats
        self._workers = _useful_workers(images, workers, views=augment.of_photos)

    def _with_partners(self, group: int, rows: Tensor) -> Tensor:
        """Return the rows of a group that this rank needs for its own."""
        if not self._mix or len(rows) == self._mix_group:
            return rows
        # Row i is mixed with row -1 - i of the group. Rows and partners, mirrored, form a group that mixes alike.
        return torch.cat([rows, (2 * group + 1) * self._mix_group - 1 - rows.flip(0)])

    def steps(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of steps start to stop - 1.

        Images are float32 (B, C, H, W), normalised; targets are int64 (B,), or float32 (B, classes) where mixed.
        """
        steps = range(start, stop)
        for step, (images, faults) in zip(
            steps, _read_ahead(self._images, self._read, steps, self._workers), strict=True
        ):
            if self._photos is not None:
                note_broken(self._photos, faults)
            yield self._finish(step, images)

    def _members(self, step: int) -> tuple[Indices, Indices]:
        """Return the index of every image, and the number of its copy."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        order = _epoch_order(len(self._images), self._seed, epoch)
        group, within = np.divmod(self._rows.numpy(), self._mix_group)
        spread = (
            within * (self._batch_size // self._mix_group) + group
        )  # neighbours, so copies too, in different groups
        places, copies = np.divmod(step_of_epoch * self._batch_size + spread, self._repeats)
        return order[places], copies

    def _read(self, step: int) -> _Read:
        indices, copies = self._members(step)
        if self._resident is not None:
            return self._resident[torch.from_numpy(indices).to(self._device)], {}
        if self._photos is None:
            return self._images.load(indices), {}
        epoch = step // self.steps_per_epoch
        pixels, faults = self._read_photos(self._photos, indices, copies, epoch)
        taken = indices.copy()
        while len(rows := np.flatnonzero(np.isin(taken, list(faults)))):
            taken[rows] = [self._substitute(index, epoch, faults) for index in indices[rows]]
            pixels[rows], more = self._read_photos(self._photos, taken[rows], copies[rows], epoch)
            faults |= more
        return pixels, faults

    def _read_photos(self, photos: Photos, indices: Indices, copies: Indices, epoch: int) -> _Read:
        if self._augment.of_photos:
            seeds = (self._seed, _VIEWS, epoch)
            return random_views(photos, indices, copies, self._augment, self._mean, seeds)
        return photos.read(indices)

    def _substitute(self, index: int, epoch: int, faults: Mapping[int, BrokenImage]) -> int:
        same_class = np.flatnonzero(self._images.labels == self._images.labels[index])
        order = np.random.default_rng([self._seed, _SUBSTITUTES, epoch, index]).permutation(same_class)
        for candidate in order.tolist():
            if candidate not in faults:
                return candidate
        raise BrokenImageError(
            f"{faults[index]}; no other training image of its class can be read; replace it", (faults[index],)
        )

    def _finish(self, step: int, images: Tensor) -> tuple[Tensor, Tensor]:
        augment, targets = self._augment, torch.from_numpy(self._images.labels[self._members(step)[0]])
        generator = torch.Generator().manual_seed(derived_seed(self._seed, _AUGMENTATION, step))
        height, width = images.shape[-2:]
        draws = augment.draw(self._batch_size, (height, width), generator)
        if not self._whole:
            draws = draws.take(self._rows)
        images, targets = to_device(images, self._device), to_device(targets, self._device)
        images = augment.rotate_and_zoom(augment.crop_and_flip(images, draws), draws)
        images = augment.erase_(self._normalise(images), draws)
        return self._mixed(step, images, targets) if self._mix else (images, targets)

    def _mixed(self, step: int, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        assert self._mix
        mixed, first = [], 0
        for group, rows in self._groups:
            beyond = first + len(self._with_partners(group, rows))
            with globals_kept():
                seed_globals(derived_seed(self._seed, _MIXING, step, *([group] if group else [])))
                found = self._mix(images[first:beyond], targets[first:beyond])
            mixed.append(tuple(part[: len(rows)] for part in found))
            first = beyond
        return torch.cat([part for part, _ in mixed]), torch.cat([part for _, part in mixed])


@lru_cache(maxsize=4)
def _epoch_order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(images)


_RESIDENT = 2**31  # bytes of images that stay on a device


def _resident(images: Images, device: torch.device) -> Tensor | None:
    if device.type == "cpu" or not isinstance(images, ImageArray) or images.nbytes > _RESIDENT:
        return None
    return images.load(range(len(images))).to(device)


def _read_ahead(images: Images, read: Callable[[T], R], requests: Sequence[T], workers: int) -> Iterator[R]:
    name = images.path if isinstance(images, Photos) else str
    return read_ahead(read, requests, workers, name=name)


def _useful_workers(images: Images, workers: int, *, views: bool) -> int:
    if workers < 0:
        raise ValueError(f"workers must not be negative, but got {workers}")
    return workers if isinstance(images, Photos) and (views or not images.in_memory) else 0


def eval_batches(
    images: Images,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    indices: Indices | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images, or those at some indices, in order; the last batch may be short.

    Batches are float32 (B, C, H, W), normalised, with int64 (B,) labels, on a `device` where pixels arrive as bytes.
    `workers` processes read ahead, unless all is in memory. Raises ValueError for a batch size below 1 or a mean and
    std that cannot normalise, BrokenImageError for an image that cannot be read, WorkerDied as TrainBatches does.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, but got {batch_size}")
    device = torch.device(device)
    normalise = _normaliser(mean, std, device)
    workers = _useful_workers(images, workers, views=False)
    chosen = np.arange(len(images)) if indices is None else indices
    parts = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part, pixels in zip(parts, _read_ahead(images, images.load, parts, workers), strict=True):
            yield normalise(to_device(pixels, device)), to_device(torch.from_numpy(images.labels[part]), device)

    return batches()


def channel_statistics(images: Images, *, at_most: int = 65_536) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation per channel of images scaled to 0..1.

    Call it with training images only. Of a set with more than `at_most` images, as many, evenly spaced, stand for
    all, because reading a large set takes long. Sums are exact, so nothing depends on the order of reading. What cannot
    be read is left out, recorded and bounded as in TrainBatches.
    """
    if not len(images):
        raise ValueError("there are no images to take statistics of")
    chosen = np.linspace(0, len(images) - 1, min(at_most, len(images))).round().astype(np.int64)
    sums, squares, pixels = [], [], 0
    for first in range(0, len(chosen), 1024):
        values = _load_readable(images, chosen[first : first + 1024]).long()
        sums.append(values.sum(dim=(0, 2, 3)))
        squares.append(values.square().sum(dim=(0, 2, 3)))
        pixels += values[:, 0].numel()
    mean = torch.stack(sums).sum(dim=0).double() / pixels
    variance = torch.stack(squares).sum(dim=0).double() / pixels - mean.square()
    return tuple((mean / 255).tolist()), tuple((variance.clamp(min=0).sqrt() / 255).tolist())


def _load_readable(images: Images, indices: Indices) -> Tensor:
    if not isinstance(images, Photos):
        return images.load(indices)
    pixels, faults = images.read(indices)
    note_broken(images, faults)
    return pixels[~np.isin(indices, list(faults))] if faults else pixels


def _normaliser(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function from images in 0..255 to normalised float32 ones."""
    finite = all(map(math.isfinite, (*mean, *std)))
    if len(mean) != len(std) or not finite or not all(deviation > 0 for deviation in std):
        raise ValueError(
            "mean and std have one finite value per channel, every std above 0, but got "
            f"mean={tuple(mean)}, std={tuple(std)}"
        )
    means, stds = (torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] for values in (mean, std))
    return partial(_normalise, means=means, stds=stds)


def _normalise(images: Tensor, *, means: Tensor, stds: Tensor) -> Tensor:
    if images.shape[1] != len(means):
        raise ValueError(f"images have {images.shape[1]} channels, but mean and std have {len(means)}")
    return (images.float() / 255 - means) / stds


def _mixing(mixup: float, cutmix: float, label_smoothing: float, classes: int | None, batch_size: int) -> _Mix | None:
    if mixup < 0 or cutmix < 0:
        raise ValueError(f"`mixup` and `cutmix` must not be negative, but got {mixup} and {cutmix}")
    if not (mixup or cutmix):
        if label_smoothing:
            raise ValueError(
                f"label_smoothing={label_smoothing} smooths mixed targets; without mixup or cutmix give it to the loss"
            )
        return None
    if classes is None:
        raise ValueError("`mixup` and `cutmix` need the number of classes, for their targets are probabilities")
    if batch_size % 2:
        raise ValueError(f"`mixup` and `cutmix` mix pairs and need an even batch_size, but got {batch_size}")
    mixing = timm_data("mixup and cutmix").Mixup
    mix: _Mix = mixing(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=label_smoothing, num_classes=classes)
    return mix
