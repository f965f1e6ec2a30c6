from typing import Any

import numpy as np
import pytest
import torch

from nasx.data import Augment, ImageArray, Images, TrainBatches, load_digits
from nasx.data.augment import fill_rectangles_

DIGITS = load_digits(seed=0).train
ONE = ImageArray(
    np.arange(1, 65, dtype=np.uint8).reshape(1, 1, 8, 8).repeat(256, axis=0), np.zeros(256, dtype=np.int64)
)


def augmented(images: Images, augment: Augment, seed: int = 0) -> torch.Tensor:
    """Return one batch of all images, as integers 0..255."""
    batches = TrainBatches(images, batch_size=len(images), seed=seed, augment=augment, mean=(0,), std=(1,))
    return (next(batches.steps(0, 1))[0] * 255).round().long()


def test_crops_are_all_the_shifts_of_the_zero_padded_image() -> None:
    padded = np.pad(np.arange(1, 65).reshape(8, 8), 1)
    expected = {padded[top : top + 8, left : left + 8].tobytes() for top in range(3) for left in range(3)}
    assert {image[0].numpy().tobytes() for image in augmented(ONE, Augment(pad_crop=1))} == expected


def test_flips_mirror_about_half_of_the_images() -> None:
    image = torch.arange(1, 65).reshape(8, 8)
    batch = augmented(ONE, Augment(flip=True))[:, 0]
    mirrored = (batch == image.flip(1)).all(dim=(1, 2))
    assert (mirrored | (batch == image).all(dim=(1, 2))).all()
    assert 96 < mirrored.sum() < 160  # 256 fair coins; four standard deviations are 32


def test_crop_and_flip_combine() -> None:
    padded = np.pad(np.arange(1, 65).reshape(8, 8), 2)
    crops = [padded[top : top + 8, left : left + 8] for top in range(5) for left in range(5)]
    expected = {crop.tobytes() for crop in crops} | {crop[:, ::-1].tobytes() for crop in crops}
    images = {image[0].numpy().tobytes() for image in augmented(ONE, Augment(pad_crop=2, flip=True))}
    assert len(images) > 25
    assert images <= expected


def test_channels_move_together() -> None:
    grey = DIGITS.load(range(64)).numpy()
    images = ImageArray(np.concatenate([grey, 255 - grey], axis=1), DIGITS.labels[:64])
    batches = TrainBatches(images, batch_size=64, seed=0, augment=Augment(flip=True), mean=(0, 0), std=(1, 1))
    batch, _ = next(batches.steps(0, 1))
    assert torch.allclose(batch[:, 0] + batch[:, 1], torch.ones(()))


def test_erasing_fills_one_rectangle_of_2_to_33_percent_with_unit_noise() -> None:
    side = 32
    images = ImageArray(np.zeros((512, 1, side, side), dtype=np.uint8), np.zeros(512, dtype=np.int64))
    batches = TrainBatches(images, batch_size=512, seed=0, augment=Augment(erase=0.5), mean=(0.5,), std=(0.25,))
    batch = next(batches.steps(0, 1))[0][:, 0]
    changed = batch != -2
    touched = changed.any(dim=(1, 2))
    assert 200 < touched.sum() < 312  # five standard deviations
    for mask in changed[touched]:
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert mask.sum() == height * width
        assert 0.015 < height * width / side**2 < 0.36  # the bounds, and sides rounded to pixels
        assert 0.2 < height / width < 5
    noise = batch[changed]
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    shares = changed[touched].float().mean(dim=(1, 2))
    assert shares.min() < 0.05
    assert shares.max() > 0.28


def test_rectangles_filled_in_one_operation_are_those_filled_one_by_one() -> None:
    # what accelerators do, here on the CPU
    augment = Augment(erase=0.6)
    draws = augment.draw(40, (12, 9), torch.Generator().manual_seed(0))
    images = torch.zeros(40, 3, 12, 9)
    one_by_one = augment.erase_(images.clone(), draws)
    regions = [
        one_by_one[row, :, top : top + height, left : left + width].flatten()
        for row in draws.erased.nonzero()[:, 0].tolist()
        for top, left, height, width in [draws.rectangles[row].tolist()]
    ]
    assert torch.equal(fill_rectangles_(images.clone(), draws, torch.cat(regions)), one_by_one)
    assert not torch.equal(one_by_one, images)


def spot_movements(augment: Augment) -> tuple[torch.Tensor, torch.Tensor]:
    """Return by how many degrees and by what factor a spot moved about the centre, for 256 samples."""
    height, width = 41, 61  # not square: a turn must not shear
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    image = np.rint(255 * np.exp(-((x - 8) ** 2 + (y + 6) ** 2) / 8)).astype(np.uint8)
    images = ImageArray(image[None, None].repeat(256, axis=0), np.zeros(256, dtype=np.int64))
    batches = TrainBatches(images, batch_size=256, seed=0, augment=augment, mean=(0,), std=(1,))
    batch = next(batches.steps(0, 1))[0][:, 0].double()
    weights = batch / batch.sum(dim=(1, 2), keepdim=True)
    positions = (weights * torch.as_tensor(x)).sum(dim=(1, 2)), (weights * torch.as_tensor(y)).sum(dim=(1, 2))
    angles = torch.rad2deg(torch.atan2(positions[1], positions[0]) - np.arctan2(-6, 8))
    return angles, torch.hypot(*positions) / 10


def test_rotation_is_about_the_centre_and_uniform_either_way() -> None:
    angles, factors = spot_movements(Augment(rotate=20))
    assert -20.2 < angles.min() < -18
    assert 18 < angles.max() < 20.2
    assert abs(float(angles.mean())) < 3  # four standard deviations
    assert torch.allclose(factors, torch.ones(256, dtype=torch.float64), atol=0.02)


def test_zoom_is_about_the_centre_and_uniform_either_way() -> None:
    angles, factors = spot_movements(Augment(zoom=0.3))
    assert 0.68 < factors.min() < 0.73
    assert 1.27 < factors.max() < 1.32
    assert angles.abs().max() < 0.5


def test_one_augmentation_leaves_the_draws_of_the_others_alone() -> None:
    both, flips = augmented(DIGITS, Augment(flip=True, erase=0.3)), augmented(DIGITS, Augment(flip=True))
    untouched = (both == flips).all(dim=(1, 2, 3))
    assert 0.5 < float(untouched.float().mean()) < 0.9


def test_samples_and_steps_are_drawn_apart() -> None:
    batches = TrainBatches(ONE, batch_size=256, seed=0, augment=Augment(pad_crop=3, flip=True), mean=(0,), std=(1,))
    first, second = (images for images, _ in batches.steps(0, 2))
    assert len({image.numpy().tobytes() for image in first}) > 60  # of 98 that are possible
    assert not torch.equal(first, second)


def test_no_augmentation_is_the_identity() -> None:
    assert (augmented(ONE, Augment()) == torch.arange(1, 65).reshape(8, 8)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pad_crop": -1}, "must not be negative, but got -1"),
        ({"erase": 1.5}, r"probability in 0\.\.1, but got 1.5"),
        ({"rotate": -1}, r"degrees, 0\.\.180, but got -1"),
        ({"zoom": 1}, "exclusive of 1, but got 1"),
        ({"resized_crop": (0.5, 0.1)}, r"0 < low <= high <= 1, but got \(0\.5, 0\.1\)"),
        ({"color_jitter": -0.4}, "must not be negative, but got -0.4"),
    ],
)
def test_impossible_augmentation_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**arguments)
