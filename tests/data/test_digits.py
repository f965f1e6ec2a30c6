import hashlib
import json
from importlib.resources import files

import numpy as np
import pytest

from nasx.data import load_digits


def stored() -> dict[str, np.ndarray]:
    with (files("nasx.data") / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def test_what_ships_is_what_shipped() -> None:
    digests = {name: hashlib.sha256(array.tobytes()).hexdigest()[:16] for name, array in stored().items()}
    assert digests == {"images": "8f26b2bd9d135c25", "labels": "8ba4f891220f5e4c", "test": "151849e4a1922b54"}


def test_images_and_labels_are_those_of_scikit_learn() -> None:
    source = pytest.importorskip("sklearn.datasets").load_digits()
    assert np.array_equal(stored()["images"], source.images)
    assert np.array_equal(stored()["labels"], source.target)


def test_ink_is_scaled_to_full_intensity() -> None:
    dataset = load_digits(seed=0)
    pixels = dataset.open_test().load(range(360)).numpy()
    ink = stored()["images"][stored()["test"]][:, None]
    assert pixels.shape == (360, dataset.channels, dataset.image_size, dataset.image_size)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels / 255 - ink / 16).max() <= 0.5 / 255
    assert np.array_equal(pixels == 255, ink == 16)


def test_every_digit_is_in_exactly_one_part() -> None:
    dataset = load_digits(seed=0)
    assert [len(dataset.train), len(dataset.val), len(dataset.open_test())] == [1150, 287, 360]
    counts = [np.bincount(part.labels) for part in (dataset.train, dataset.val, dataset.open_test())]
    assert np.sum(counts, axis=0).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]  # as scikit-learn documents them
    loaded = [part.load(range(len(part))) for part in (dataset.train, dataset.val, dataset.open_test())]
    distinct = {image.numpy().tobytes() for part in loaded for image in part}
    assert len(distinct) == 1797  # no two digits of the source are equal


def test_the_seed_moves_validation_and_leaves_the_test_part() -> None:
    one, two = load_digits(seed=1), load_digits(seed=2)
    assert one.split["test"] == two.split["test"]
    assert one.split["val"]["sha256"] != two.split["val"]["sha256"]
    assert np.bincount(one.open_test().labels).min() >= 35
    assert load_digits(seed=1).split == one.split


def test_the_record_counts_what_is_there_and_is_json() -> None:
    dataset = load_digits(seed=0, val_fraction=0.1)
    assert len(dataset.val) == dataset.split["val"]["images"] == 144
    assert list(dataset.split["train"]["per_class"].values()) == np.bincount(dataset.train.labels).tolist()
    assert json.loads(json.dumps(dataset.split)) == dataset.split
    names = "".join(f"{index:04d}\n" for index in stored()["test"])
    assert dataset.split["test"]["sha256"] == hashlib.sha256(names.encode()).hexdigest()


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, 1.5])
def test_a_fraction_outside_of_0_and_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"must lie between 0 and 1, but got val_fraction={fraction}"):
        load_digits(seed=0, val_fraction=fraction)
