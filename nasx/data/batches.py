"""Batches as a pure function of seed and step, so that any step can be recomputed by any process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from nasx.data.augment import Augment
from nasx.data.dataset import Images

# What a seed is used for; without them, epoch 3 and step 3 would share their random numbers.
_ORDER, _AUGMENTATION, _MIXING = range(3)

_Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TrainBatches:
    """Shuffled, augmented, normalised training batches, each a pure function of (seed, step).

    Epoch `step // steps_per_epoch` has its own order; an incomplete last batch is dropped. `mean` and `std` are of
    images in 0..1, per channel. `mixup` and `cutmix` are the alphas of DeiT's mixing, 0 for none; with one of them
    targets are probabilities, smoothed by `label_smoothing`, and `classes` is needed. `part=(rank, world)` yields
    that rank's rows of every batch of `batch_size`, the same to the bit as in the undivided batch. Raises ValueError
    for what cannot be.
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
        part: tuple[int, int] = (0, 1),
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
        if seed < 0:
            raise ValueError(f"a seed must not be negative, but got {seed}")
        self.steps_per_epoch = len(images) // batch_size
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._augment = augment
        self._normalise = _normaliser(mean, std)
        self._mix = _mixing(mixup, cutmix, label_smoothing, classes, batch_size)
        share = batch_size // world
        self._rows = torch.arange(rank * share, (rank + 1) * share)

    def steps(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of steps start to stop - 1.

        Images are float32 (B, C, H, W), normalised; targets are int64 (B,), or float32 (B, classes) where mixed.
        """
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(start, stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.default_rng([self._seed, _ORDER, epoch]).permutation(len(self._images))
            first = step % self.steps_per_epoch * self._batch_size
            yield self._batch(step, order[first : first + self._batch_size])

    def _batch(self, step: int, members: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = self._rows
        share = len(rows)
        if self._mix and share < self._batch_size:
            # Row i is mixed with row -1 - i of the batch. Rows and partners, mirrored, form a batch that mixes alike.
            rows = torch.cat([rows, self._batch_size - 1 - rows.flip(0)])
        indices = members[rows.numpy()]
        images = self._images.load(indices)
        targets = torch.from_numpy(self._images.labels[indices])

        generator = torch.Generator().manual_seed(_derived_seed(self._seed, _AUGMENTATION, step))
        height, width = images.shape[-2:]
        draws = self._augment.draw(self._batch_size, (height, width), generator).take(rows)
        images = self._normalise(self._augment.crop_and_flip(images, draws))
        images = self._augment.erase_(images, draws)
        if self._mix:
            with _numpy_seeded(_derived_seed(self._seed, _MIXING, step) % 2**32):
                images, targets = self._mix(images, targets)
        return images[:share], targets[:share]


def eval_batches(
    images: Images, batch_size: int, mean: Sequence[float], std: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images in order, float32 (B, C, H, W) normalised, with int64 (B,) labels; the last batch may be short.

    Raises ValueError for a batch size below 1 or a mean and std that cannot normalise.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, but got {batch_size}")
    normalise = _normaliser(mean, std)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(images), batch_size):
            indices = np.arange(first, min(first + batch_size, len(images)))
            yield normalise(images.load(indices)), torch.from_numpy(images.labels[indices])

    return batches()


def channel_statistics(images: Images, *, at_most: int = 65_536) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation per channel of images scaled to 0..1.

    Call it with training images only. Of a set with more than `at_most` images, as many, evenly spaced, stand for
    all, because reading a large set takes long. Sums are exact, so nothing depends on the order of reading.
    """
    if not len(images):
        raise ValueError("there are no images to take statistics of")
    chosen = np.linspace(0, len(images) - 1, min(at_most, len(images))).round().astype(np.int64)
    sums, squares, pixels = [], [], 0
    for first in range(0, len(chosen), 1024):
        values = images.load(chosen[first : first + 1024]).long()
        sums.append(values.sum(dim=(0, 2, 3)))
        squares.append(values.square().sum(dim=(0, 2, 3)))
        pixels += values[:, 0].numel()
    mean = torch.stack(sums).sum(dim=0).double() / pixels
    variance = torch.stack(squares).sum(dim=0).double() / pixels - mean.square()
    return tuple((mean / 255).tolist()), tuple((variance.clamp(min=0).sqrt() / 255).tolist())


def _derived_seed(*path: int) -> int:
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0])


def _normaliser(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Return the function from uint8 to normalised float32 images."""
    if len(mean) != len(std) or not all(deviation > 0 for deviation in std):
        raise ValueError(
            f"mean and std have one value per channel, every std above 0, but got mean={tuple(mean)}, std={tuple(std)}"
        )
    means, stds = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))

    def normalise(images: Tensor) -> Tensor:
        if images.shape[1] != len(means):
            raise ValueError(f"images have {images.shape[1]} channels, but mean and std have {len(means)}")
        return (images.float() / 255 - means) / stds

    return normalise


def _mixing(mixup: float, cutmix: float, label_smoothing: float, classes: int | None, batch_size: int) -> _Mix | None:
    if mixup < 0 or cutmix < 0:
        raise ValueError(f"mixup and cutmix must not be negative, but got {mixup} and {cutmix}")
    if not (mixup or cutmix):
        if label_smoothing:
            raise ValueError(
                f"label_smoothing={label_smoothing} smooths mixed targets; without mixup or cutmix give it to the loss"
            )
        return None
    if classes is None:
        raise ValueError("mixup and cutmix need the number of classes, for their targets are probabilities")
    if batch_size % 2:
        raise ValueError(f"mixup and cutmix mix pairs and need an even batch_size, but got {batch_size}")
    try:
        mixing = import_module("timm.data").Mixup
    except ImportError as error:
        raise ImportError("mixup and cutmix need timm: pip install 'nasx[recipes]'") from error
    mix: _Mix = mixing(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=label_smoothing, num_classes=classes)
    return mix


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which timm draws from, and put it back as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
