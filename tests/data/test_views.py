"""Random views of photographs, and reading in worker processes."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nasx.data import Augment, Files, PhotoSet, TrainBatches, eval_batches, load_digits, load_image_folder

SIZE = 24
HALF = (0.5, 0.5, 0.5)
DEIT = Augment(
    resized_crop=(0.08, 1.0), auto_augment="rand-m9-mstd0.5-inc1", flip=True, erase=0.25, pad_crop=2, rotate=5.0
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write photographs of several shapes, none of the size that is trained on: digits, enlarged and coloured."""
    dataset = load_digits(seed=0)
    for part, count in (("train", 20), ("test", 2)):
        digits = dataset.train if part == "train" else dataset.val
        for label in range(2):
            directory = tmp_path / part / str(label)
            directory.mkdir(parents=True)
            for number, index in enumerate(np.flatnonzero(digits.labels == label)[:count]):
                grey = digits.load([index])[0, 0].numpy()
                pixels = np.stack([grey, 255 - grey, np.full_like(grey, 12 * number)], axis=2)
                Image.fromarray(pixels).resize((30 + number, 50 - number)).save(directory / f"{number}.png")
    return tmp_path


def photos(folder: Path, *, in_memory: bool = False) -> PhotoSet:
    paths = sorted((folder / "train").glob("*/*.png"))
    labels = np.array([int(path.parent.name) for path in paths], dtype=np.int64)
    return PhotoSet(Files(paths), labels, SIZE, in_memory=in_memory)


def batches_of(images: Any, **arguments: Any) -> TrainBatches:
    return TrainBatches(
        images, **{"batch_size": 8, "seed": 0, "mean": HALF, "std": HALF, "augment": DEIT, "classes": 2, **arguments}
    )


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("augment", [DEIT, Augment(color_jitter=0.4), Augment(pad_crop=2)])
def test_the_number_of_workers_changes_no_batch(folder: Path, augment: Augment) -> None:
    alone, helped = (
        list(batches_of(photos(folder), augment=augment, mixup=0.8, cutmix=1.0, workers=workers).steps(3, 7))
        for workers in (0, 2)
    )
    assert len(alone) == 4
    assert alone[0][0].shape == (8, 3, SIZE, SIZE)
    assert all(same(one, other) for one, other in zip(alone, helped, strict=True))


def test_evaluation_with_workers_is_the_same(folder: Path) -> None:
    alone, helped = (list(eval_batches(photos(folder), 7, HALF, HALF, workers=workers)) for workers in (0, 2))
    assert len(alone) == 6
    assert all(same(one, other) for one, other in zip(alone, helped, strict=True))


def test_views_do_not_depend_on_what_is_kept_in_memory(folder: Path) -> None:
    one, other = (next(batches_of(photos(folder, in_memory=kept)).steps(2, 3)) for kept in (False, True))
    assert same(one, other)


def test_starting_at_a_step_equals_skipping_to_it(folder: Path) -> None:
    batches = batches_of(photos(folder))  # 5 steps an epoch
    assert all(same(*pair) for pair in zip(list(batches.steps(3, 7))[2:], batches.steps(5, 7), strict=True))


def test_parts_are_slices_of_the_whole_to_the_bit(folder: Path) -> None:
    def batch(part: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return next(batches_of(photos(folder), mixup=0.8, part=part).steps(6, 7))

    images, targets = zip(batch((0, 2)), batch((1, 2)), strict=True)
    assert same(batch((0, 1)), (torch.cat(images), torch.cat(targets)))


def test_copies_of_a_photograph_are_seen_differently(folder: Path) -> None:
    augment = Augment(resized_crop=(0.08, 1.0))
    once, thrice, again = (
        next(batches_of(photos(folder), augment=augment, batch_size=12, repeats=repeats, workers=workers).steps(0, 1))
        for repeats, workers in ((1, 0), (3, 0), (3, 1))
    )
    assert same(thrice, again)
    assert torch.equal(thrice[0][::3], once[0][:4]), "the first copy is what there is without repeats"
    assert all(not torch.equal(*pair) for pair in zip(thrice[0], thrice[0][1:], strict=False))


def test_views_change_with_epoch_seed_and_sample(folder: Path) -> None:
    """One photograph, many times: what differs is the view."""
    path = next((folder / "train").glob("*/*.png"))
    images = PhotoSet(Files([path] * 8), np.zeros(8, dtype=np.int64), SIZE, in_memory=False)
    augment = Augment(resized_crop=(0.08, 1.0), auto_augment="rand-m9-mstd0.5-inc1")
    views = [
        image.numpy().tobytes()
        for seed in (0, 1)
        for batch, _ in batches_of(images, augment=augment, seed=seed).steps(0, 2)
        for image in batch
    ]
    assert len(set(views)) == len(views) == 32


def test_global_generators_neither_move_nor_matter(folder: Path) -> None:
    drawn = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before: Any = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002
        for workers in (0, 1):
            drawn.append(next(batches_of(photos(folder), mixup=0.8, workers=workers).steps(0, 1)))
            after: Any = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002
            assert before == after
    assert all(same(drawn[0], other) for other in drawn[1:])


def test_a_resized_crop_keeps_the_share_of_the_area_that_was_asked_for(tmp_path: Path) -> None:
    """On a ramp from left to right, the range of a view is the width of its crop."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    images = PhotoSet(Files([tmp_path / "ramp.png"] * 64), np.zeros(64, dtype=np.int64), 64, in_memory=False)
    augment = Augment(resized_crop=(0.25, 0.25))
    batch, _ = next(batches_of(images, batch_size=64, augment=augment, mean=(0,) * 3, std=(1,) * 3).steps(0, 1))
    widths = (batch.amax(dim=(1, 2, 3)) - batch.amin(dim=(1, 2, 3))) * 255
    low, high = 128 * (3 / 4) ** 0.5, 128 * (4 / 3) ** 0.5
    assert low - 6 < widths.min() < low + 8  # the outer pixels average a few columns
    assert high - 8 < widths.max() < high + 2


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "rand-m9-mstd0.5-inc1", "rand-m0", "original", "augmix-m5-w2"])
def test_every_policy_can_be_drawn_at_every_magnitude(folder: Path, policy: str) -> None:
    augment = Augment(auto_augment=policy)
    for images, _ in batches_of(photos(folder), augment=augment, batch_size=40).steps(0, 5):
        assert images.abs().max() <= 1


def test_posterizing_keeps_the_upper_bits_and_at_the_greatest_magnitude_none(tmp_path: Path) -> None:
    """Published results were drawn so; of 512 views about 34 are posterized, and most of these stay black."""
    Image.fromarray(np.full((SIZE, SIZE, 3), 200, dtype=np.uint8)).save(tmp_path / "grey.png")
    images = PhotoSet(Files([tmp_path / "grey.png"] * 512), np.zeros(512, dtype=np.int64), SIZE, in_memory=False)
    augment = Augment(auto_augment="rand-m10-inc1")
    views, _ = next(batches_of(images, batch_size=512, augment=augment).steps(0, 1))
    assert 12 < (views == -1).all(dim=(1, 2, 3)).sum() < 60


@pytest.mark.parametrize("size", [96, 112, 224])
def test_large_images_are_evaluated_as_timm_does(tmp_path: Path, size: int) -> None:
    create_transform = pytest.importorskip("timm.data").create_transform
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((300, 400)).save(tmp_path / "photo.png")
    transform = create_transform(size, crop_pct=224 / 256, interpolation="bicubic", normalize=False)
    expected = transform(Image.open(tmp_path / "photo.png"))
    loaded = PhotoSet(Files([tmp_path / "photo.png"]), np.zeros(1, dtype=np.int64), size, in_memory=False).load([0])[0]
    assert torch.equal(loaded, expected)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("augment", [DEIT, Augment()])
def test_a_broken_photograph_is_named(folder: Path, workers: int, augment: Augment) -> None:
    for path in (folder / "train" / "1").iterdir():
        path.write_bytes(b"no image")
    batches = batches_of(photos(folder), augment=augment, workers=workers)
    with pytest.raises(ValueError, match=r"^\S*train/1/\d+\.png cannot be read as an image"):
        list(batches.steps(0, 5))


def test_images_in_memory_need_no_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each process would decode everything again."""
    monkeypatch.setattr("nasx.data.readers.DataLoader", None)
    images = photos(folder, in_memory=True)
    list(batches_of(images, augment=Augment(flip=True), workers=2).steps(0, 2))
    list(eval_batches(images, 8, HALF, HALF, workers=2))
    digits = load_digits(seed=0).train
    list(TrainBatches(digits, batch_size=8, seed=0, mean=(0,), std=(1,), workers=2).steps(0, 2))


def test_a_data_set_on_demand_trains_and_evaluates(folder: Path) -> None:
    dataset = load_image_folder(folder, image_size=SIZE, seed=0, val_images=4, max_bytes=0)
    images, labels = next(batches_of(dataset.train, workers=1).steps(0, 1))
    assert images.shape == (8, 3, SIZE, SIZE)
    assert images.isfinite().all()
    assert labels.shape == (8,)
    assert sum(len(labels) for _, labels in eval_batches(dataset.open_test(), 3, HALF, HALF, workers=1)) == 4


@pytest.mark.parametrize(
    "augment", [Augment(resized_crop=(0.5, 1)), Augment(auto_augment="rand-m9"), Augment(color_jitter=0.4)]
)
def test_arrays_have_no_photographs(augment: Augment) -> None:
    with pytest.raises(ValueError, match="of photographs read from files, but these images are arrays"):
        TrainBatches(load_digits(seed=0).train, batch_size=8, seed=0, mean=(0,), std=(1,), augment=augment)


@pytest.mark.parametrize("policy", ["randomly", "rand-x9", "rand-m", "rand-mten", "none"])
def test_an_unknown_policy_is_refused_at_once(folder: Path, policy: str) -> None:
    with pytest.raises(ValueError, match=f"timm has no auto_augment '{policy}'; spell it like 'rand-m9"):
        batches_of(photos(folder), augment=Augment(auto_augment=policy))


def test_a_negative_number_of_workers_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="workers must not be negative, but got -1"):
        batches_of(photos(folder), workers=-1)
    with pytest.raises(ValueError, match="workers must not be negative, but got -1"):
        eval_batches(photos(folder), 8, HALF, HALF, workers=-1)


def test_views_without_timm_name_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(ImportError, match=r"pip install 'nasx\[recipes\]'"):
        batches_of(photos(folder), augment=Augment(resized_crop=(0.123, 1.0)))


@pytest.mark.parametrize("policy", ["rand-m9-n4-mstd0.5-inc1", "augmix-m5-w4-d2", "3a"])
def test_views_of_grey_photographs_have_one_channel(tmp_path: Path, policy: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 16), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    source = Files(tmp_path / f"{number}.png" for number in range(12))
    images = PhotoSet(source, np.zeros(12, dtype=np.int64), SIZE, in_memory=False, channels=1)
    augment = Augment(resized_crop=(0.2, 1.0), auto_augment=policy, color_jitter=0.4)
    batches = TrainBatches(images, batch_size=6, seed=0, mean=(0.5,), std=(0.25,), augment=augment)
    seen = torch.cat([views for views, _ in batches.steps(0, 10)])
    assert seen.shape == (60, 1, SIZE, SIZE)
    assert seen.isfinite().all()
    assert len({view.numpy().tobytes() for view in seen}) == 60
