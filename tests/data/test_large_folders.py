"""Folders of ImageNet's shape: a thousand classes, photographs of many sizes, more than is kept in memory."""

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from nasx.data import (
    Augment,
    Dataset,
    Files,
    PhotoSet,
    TrainBatches,
    channel_statistics,
    load_digits,
    load_image_folder,
)

CLASSES, SIZE = 1000, 224


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two training images and one test image per class: digits, enlarged to all shapes and numbered in colour."""
    root = tmp_path_factory.mktemp("imagenet")
    digits = load_digits(seed=0).train
    grey = digits.load(range(len(digits)))[:, 0].numpy()
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        for part, copies in (("train", 2), ("val", 1)):
            directory = root / part / f"n{label:08d}"
            directory.mkdir(parents=True)
            for copy in range(copies):
                pixels = np.stack([grey[label], np.full((8, 8), label % 256), np.full((8, 8), 99 * copy)], axis=2)
                image = Image.fromarray(pixels.astype(np.uint8))
                width, height = rng.integers(20, 90, 2).tolist()
                image.resize((width, height)).save(directory / f"{part}_{copy}.JPEG")
    return root


@pytest.fixture
def dataset(root: Path) -> Dataset:
    return load_image_folder(root, image_size=SIZE, seed=0, val_fraction=0.1, max_bytes=0)


def test_nothing_is_decoded_before_it_is_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # headers are looked at, pixels are not
    dataset = load_image_folder(root, image_size=SIZE, seed=0, val_fraction=0.1, max_bytes=0)
    assert len(dataset.classes) == CLASSES
    assert (len(dataset.train), len(dataset.val), len(dataset.open_test())) == (1800, 200, 1000)


@pytest.mark.parametrize("augment", [Augment(flip=True), Augment(resized_crop=(0.08, 1.0), flip=True)])
def test_batches_take_the_memory_of_batches(dataset: Dataset, augment: Augment) -> None:
    """Not that of the whole training set, which is 271 MB even of this small one."""
    mean, std = channel_statistics(dataset.train, at_most=64)
    batches = TrainBatches(
        dataset.train, batch_size=16, seed=0, mean=mean, std=std, augment=augment, classes=CLASSES, mixup=0.8
    )
    tracemalloc.start()
    try:
        for images, targets in batches.steps(0, 4):
            assert images.shape == (16, 3, SIZE, SIZE)
            assert images.isfinite().all()
            assert targets.shape == (16, CLASSES)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_a_photograph_costs_its_name(dataset: Dataset, root: Path) -> None:
    """What goes to each worker process: a million photographs are a hundred megabytes, with this short a root."""
    per_image = len(pickle.dumps(dataset.train)) / len(dataset.train)
    assert per_image < len(str(root)) + 60


def test_paths_come_back_as_they_were(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "ü ñ.png", "a", "日本.jpg")]
    images = PhotoSet(Files(paths), np.zeros(4, dtype=np.int64), 8, in_memory=False)
    assert [images.path(index) for index in range(4)] == paths
    assert images.path(-1) == paths[-1]
    with pytest.raises(IndexError):
        images.path(4)


def test_evaluation_crops_as_timm_does(dataset: Dataset) -> None:
    create_transform = pytest.importorskip("timm.data").create_transform
    transform = create_transform(SIZE, crop_pct=224 / 256, interpolation="bicubic", normalize=False)
    test = dataset.open_test()
    assert isinstance(test, PhotoSet)
    expected = torch.stack([transform(Image.open(test.path(index))) for index in range(0, 1000, 100)])
    assert torch.equal(test.load(range(0, 1000, 100)), expected)
