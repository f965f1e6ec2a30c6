import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nasx.data import Augment, Dataset, ImageArray, TrainBatches, channel_statistics, eval_batches, load_digits

DIGITS = load_digits(seed=0).train
EVERYTHING = Augment(pad_crop=1, flip=True, erase=0.5, rotate=10, zoom=0.1)
MIXING = [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)]


def numbered(count: int) -> ImageArray:
    """Return images that hold their own number, in one pixel."""
    return ImageArray(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(count) % 5)


def batches_of(images: ImageArray, **arguments: Any) -> TrainBatches:
    return TrainBatches(images, **{"batch_size": 8, "seed": 0, "mean": (0,), "std": (1,), **arguments})


def digit_batches(**arguments: Any) -> TrainBatches:
    return TrainBatches(
        DIGITS, **{"batch_size": 24, "seed": 0, "mean": (0.3,), "std": (0.4,), "classes": 10, **arguments}
    )


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def members(batches: TrainBatches, start: int, stop: int) -> list[int]:
    return [int(pixel * 255 + 0.5) for images, _ in batches.steps(start, stop) for pixel in images[:, 0, 0, 0]]


def test_an_epoch_has_every_image_once_with_its_label() -> None:
    images = numbered(40)
    batches = batches_of(images)
    assert batches.steps_per_epoch == 5
    first, second = members(batches, 0, 5), members(batches, 5, 10)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != sorted(first)
    targets = torch.cat([labels for _, labels in batches.steps(0, 5)])
    assert targets.dtype == torch.int64
    assert targets.tolist() == [number % 5 for number in first]


def test_an_incomplete_batch_is_dropped() -> None:
    batches = batches_of(numbered(39))
    assert batches.steps_per_epoch == 4
    assert len(set(members(batches, 0, 4))) == 32


@pytest.mark.parametrize(("mixup", "cutmix"), MIXING)
def test_starting_at_a_step_equals_skipping_to_it(mixup: float, cutmix: float) -> None:
    batches = digit_batches(batch_size=230, mixup=mixup, cutmix=cutmix, augment=EVERYTHING)  # 5 steps an epoch
    skipped = list(batches.steps(0, 12))[7:]
    started = list(batches.steps(7, 12))
    assert len(started) == 5
    assert all(same(one, other) for one, other in zip(skipped, started, strict=True))
    assert not same(started[0], started[1])
    assert not list(batches.steps(4, 4))


@settings(max_examples=25)
@given(
    world=st.sampled_from([2, 3, 4, 8, 12, 24]),
    mixing=st.sampled_from(MIXING),
    step=st.integers(0, 100),
    seed=st.integers(0, 2**40),
)
def test_parts_are_slices_of_the_whole_to_the_bit(
    world: int, mixing: tuple[float, float], step: int, seed: int
) -> None:
    mixup, cutmix = mixing

    def batch(part: tuple[int, int]) -> tuple[Tensor, Tensor]:
        batches = digit_batches(seed=seed, mixup=mixup, cutmix=cutmix, augment=EVERYTHING, part=part)
        return next(batches.steps(step, step + 1))

    images, targets = zip(*(batch((rank, world)) for rank in range(world)), strict=True)
    assert all(len(part) == 24 // world for part in images)
    assert same(batch((0, 1)), (torch.cat(images), torch.cat(targets)))


def test_repeated_images_come_in_a_row_each_augmented_by_itself() -> None:
    """Three times a third of the images, as DeiT has it, in as many steps."""
    images = numbered(48)
    batches = batches_of(images, batch_size=12, repeats=3)
    assert batches.steps_per_epoch == 4
    first, second = members(batches, 0, 4), members(batches, 4, 8)
    assert first[::3] == first[1::3] == first[2::3]
    assert len(set(first)) == 16
    assert set(first) != set(second)
    assert members(batches, 2, 6) == (first + second)[24:72]
    assert members(batches_of(images, batch_size=12), 0, 4)[:16] == first[::3], "the order is that without repeats"
    targets = torch.cat([labels for _, labels in batches.steps(0, 4)])
    assert targets.tolist() == [number % 5 for number in first]
    moved, _ = next(digit_batches(repeats=3, augment=Augment(pad_crop=3)).steps(0, 1))
    assert not torch.equal(moved[0::3], moved[1::3])
    assert not torch.equal(moved[1::3], moved[2::3])


@pytest.mark.parametrize(("mixup", "world"), [(0.8, 2), (0.0, 4)])
def test_parts_of_repeated_images_are_slices_of_the_whole(mixup: float, world: int) -> None:
    def batch(part: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return next(digit_batches(batch_size=40, repeats=3, mixup=mixup, augment=EVERYTHING, part=part).steps(3, 4))

    images, targets = zip(*(batch((rank, world)) for rank in range(world)), strict=True)
    assert same(batch((0, 1)), (torch.cat(images), torch.cat(targets)))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("mix_group", [4, 6, 12])
def test_mixing_by_groups_is_the_same_on_any_number_of_ranks(mix_group: int, world: int) -> None:
    settings: dict[str, Any] = {
        "mixup": 0.8,
        "cutmix": 1.0,
        "augment": EVERYTHING,
        "mix_group": mix_group,
        "repeats": 3,
    }
    (whole,) = digit_batches(**settings).steps(3, 4)
    parts = [next(digit_batches(**settings, part=(rank, world)).steps(3, 4)) for rank in range(world)]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole[0])
    assert torch.equal(torch.cat([targets for _, targets in parts]), whole[1])


def test_each_group_draws_its_own_mixing_and_copies_of_an_image_are_in_different_groups() -> None:
    shares = []
    for images, targets in digit_batches(mixup=0.8, mix_group=6).steps(0, 3):
        for group in torch.split(targets, 6):
            mixed = group[(group > 0).sum(dim=1) == 2]
            shares.append(round(float(mixed[0].max()), 4))
            assert mixed.max(dim=1).values.allclose(mixed.max(dim=1).values[:1].expand(len(mixed)))
        assert len(images) == 24
    assert len(set(shares)) == len(shares), "no two groups share a draw"
    order = members(batches_of(numbered(40), repeats=2, mix_group=4), 0, 1)
    assert sorted(order[:4]) == sorted(order[4:])
    assert len(set(order[:4])) == 4


def test_seeds_differ_and_repeat() -> None:
    one, again, other = (next(digit_batches(seed=seed).steps(3, 4)) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)


def test_images_are_normalised_per_channel() -> None:
    pixels = np.array([[0, 255], [51, 102]], dtype=np.uint8).reshape(2, 2, 1, 1)
    images = ImageArray(pixels, np.zeros(2, dtype=np.int64))
    expected = torch.tensor([[(0 - 0.5) / 0.5, (1 - 0.2) / 0.1], [(0.2 - 0.5) / 0.5, (0.4 - 0.2) / 0.1]])
    evaluated, _ = next(eval_batches(images, 2, (0.5, 0.2), (0.5, 0.1)))
    assert evaluated.dtype == torch.float32
    assert torch.allclose(evaluated[:, :, 0, 0], expected)
    trained, _ = next(batches_of(images, batch_size=2, mean=(0.5, 0.2), std=(0.5, 0.1)).steps(0, 1))
    assert torch.allclose(trained.sort(dim=0).values, evaluated.sort(dim=0).values)


@pytest.mark.parametrize(("mixup", "cutmix"), MIXING[1:])
def test_mixed_targets_are_smoothed_probabilities_of_two_classes(mixup: float, cutmix: float) -> None:
    batches = digit_batches(mixup=mixup, cutmix=cutmix, label_smoothing=0.1)
    for images, targets in batches.steps(0, 10):
        assert images.dtype == targets.dtype == torch.float32
        assert targets.shape == (24, 10)
        assert torch.allclose(targets.sum(dim=1), torch.ones(24))
        assert torch.allclose(targets.min(dim=1).values, torch.full((24,), 0.01))
        assert ((targets > 0.011).sum(dim=1) <= 2).all()


def test_mixup_weighs_images_and_targets_alike() -> None:
    images = ImageArray(np.array([0, 255] * 8, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(16) % 2)
    batches = batches_of(images, batch_size=16, classes=2, mixup=0.8)
    weights = set()
    for mixed, targets in batches.steps(0, 20):
        assert torch.allclose(mixed[:, 0, 0, 0], targets[:, 1], atol=1e-6)
        weights |= set(targets[:, 1].tolist())
    assert len(weights) > 20  # two a step, but for 0 and 1


def test_cutmix_pastes_the_share_that_the_targets_say() -> None:
    pixels = np.zeros((16, 1, 8, 8), dtype=np.uint8)
    pixels[1::2] = 255
    images = ImageArray(pixels, np.arange(16) % 2)
    for mixed, targets in batches_of(images, batch_size=16, classes=2, cutmix=1.0).steps(0, 20):
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), targets[:, 1], atol=1e-6)
        assert ((mixed == 0) | (mixed == 1)).all()


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    for _ in digit_batches(mixup=0.8, cutmix=1.0, augment=EVERYTHING).steps(0, 3):
        assert torch.equal(torch_before, torch.get_rng_state())
        numpy_now: Any = np.random.get_state()  # noqa: NPY002
        assert all(np.array_equal(one, other) for one, other in zip(numpy_before, numpy_now, strict=True))
    list(eval_batches(DIGITS, 512, (0.3,), (0.4,)))
    assert torch.equal(torch_before, torch.get_rng_state())


def test_batches_do_not_depend_on_the_global_generators() -> None:
    batches = digit_batches(mixup=0.8, cutmix=1.0, augment=EVERYTHING)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    one = list(batches.steps(0, 3))
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert all(same(first, second) for first, second in zip(one, batches.steps(0, 3), strict=True))


def test_writing_to_a_batch_does_not_write_to_the_images() -> None:
    images = numbered(8)
    for batch, _ in batches_of(images).steps(0, 1):
        batch.zero_()
    images.load(range(8)).zero_()
    assert images.load(range(8)).flatten().tolist() == list(range(8))


@pytest.mark.parametrize("batch_size", [1, 7, 40, 100])
def test_evaluation_has_all_images_in_order(batch_size: int) -> None:
    batches = list(eval_batches(numbered(40), batch_size, (0,), (1,)))
    assert torch.allclose(torch.cat([images for images, _ in batches]).flatten() * 255, torch.arange(40.0))
    assert torch.cat([labels for _, labels in batches]).tolist() == [number % 5 for number in range(40)]
    assert max(len(labels) for _, labels in batches) == min(batch_size, 40)


def test_channel_statistics_are_those_of_all_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 3, 4, 4), dtype=np.uint8)
    pixels[:, 1] //= 2
    images = ImageArray(pixels, np.zeros(1500, dtype=np.int64))
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((pixels / 255).mean(axis=(0, 2, 3)), abs=1e-12)
    assert std == pytest.approx((pixels / 255).std(axis=(0, 2, 3)), abs=1e-12)


def test_channel_statistics_of_a_large_set_are_those_of_evenly_spaced_images() -> None:
    images = numbered(100)
    assert channel_statistics(images, at_most=3)[0] == pytest.approx(((0 + 50 + 99) / 3 / 255,))
    assert channel_statistics(images, at_most=100) == channel_statistics(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 41}, "a batch of 41 is larger than the 40 training images"),
        ({"batch_size": 0}, "batch_size must be at least 1, but got 0"),
        ({"part": (2, 2)}, r"0 <= rank < world, but got \(2, 2\)"),
        ({"part": (-1, 2)}, r"0 <= rank < world, but got \(-1, 2\)"),
        ({"part": (0, 3)}, "8 does not divide among 3 processes"),
        ({"repeats": 0}, "repeats counts the copies of an image and must be at least 1, but got 0"),
        ({"classes": 4}, "labels are 0 to 4, but classes=4 needs 0 to 3"),
        ({"seed": -1}, "seed must not be negative, but got -1"),
        ({"mean": (0, 0)}, "one finite value per channel"),
        ({"std": (0,)}, "every std above 0"),
        ({"mixup": -0.1}, "must not be negative, but got -0.1"),
        ({"cutmix": 1.0}, "need the number of classes"),
        ({"label_smoothing": 0.1}, "without mixup or cutmix give it to the loss"),
        ({"mixup": 0.8, "classes": 5, "batch_size": 9}, "even batch_size, but got 9"),
    ],
)
def test_impossible_batches_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches_of(numbered(40), **arguments)


def test_impossible_evaluation_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, but got 0"):
        eval_batches(numbered(4), 0, (0,), (1,))
    with pytest.raises(ValueError, match="every std above 0"):
        eval_batches(numbered(4), 1, (0,), (0,))
    for mean, std in (((math.nan,), (1,)), ((math.inf,), (1,)), ((0,), (math.inf,)), ((0,), (math.nan,))):
        with pytest.raises(ValueError, match="one finite value per channel"):
            eval_batches(numbered(4), 1, mean, std)


def test_statistics_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="images have 1 channels, but mean and std have 3"):
        next(eval_batches(DIGITS, 8, (0.5,) * 3, (0.5,) * 3))


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        channel_statistics(numbered(0))


def test_images_and_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \(n, C, H, W\) with one label each, but got float64"):
        ImageArray(np.zeros((2, 1, 8, 8)), np.zeros(2, dtype=np.int64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"labels \(3,\)"):
        ImageArray(np.zeros((2, 1, 8, 8), dtype=np.uint8), np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("label", [5, -1])
def test_labels_beyond_the_classes_are_refused(part: str, label: int) -> None:
    parts = {name: numbered(10) for name in ("train", "val", "test")}
    parts[part].labels[7] = label
    classes, test = tuple("abcde"), parts["test"]
    name = {"train": "training", "val": "validation", "test": "test"}[part]
    message = rf"1 {name} images have labels outside of 0\.\.4, such as {label} at position 7; numbers has 5 classes"
    with pytest.raises(ValueError, match=message):
        Dataset("numbers", classes, 1, 1, parts["train"], parts["val"], {}, test=lambda: test).open_test()


def test_mixing_without_timm_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(ImportError, match=r"pip install 'nasx\[recipes\]'"):
        digit_batches(mixup=0.8)
