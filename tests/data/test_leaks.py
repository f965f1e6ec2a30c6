"""Copies of test images among training images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nasx.data import BrokenImageError, copied_arrays, copied_files, load_digits, load_image_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write ten training images and two test images of each of two classes, no two of them alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        directory = tmp_path / ("train" if number < 20 else "test") / f"class{number % 2}"
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(directory / f"{number:02d}.png")
    return tmp_path


@pytest.fixture
def leaky(folder: Path) -> Path:
    """Copy a test image into its class and another into the other class, under new names."""
    shutil.copy(folder / "test/class0/20.png", folder / "train/class0/copy.png")
    shutil.copy(folder / "test/class1/21.png", folder / "train/class0/other.png")
    return folder


def test_a_copy_is_refused_by_name(leaky: Path) -> None:
    with pytest.raises(ValueError, match=r"2 files of \S+train are copies of test images") as caught:
        load_image_folder(leaky, image_size=8, seed=0)
    assert "train/class0/copy.png = test/class0/20.png" in str(caught.value)
    assert "train/class0/other.png = test/class1/21.png" in str(caught.value)
    assert "leaks='drop'" in str(caught.value)
    assert "leaks='allow'" in str(caught.value)


def test_dropped_copies_leave_the_data_set_that_never_had_them(leaky: Path) -> None:
    dropped = load_image_folder(leaky, image_size=8, seed=0, leaks="drop")
    assert dropped.split["leaks"] == {"dropped": ["train/class0/copy.png", "train/class0/other.png"]}
    for name in ("copy", "other"):
        (leaky / f"train/class0/{name}.png").unlink()
    clean = load_image_folder(leaky, image_size=8, seed=0)
    assert dropped.split == clean.split | {"leaks": dropped.split["leaks"]}
    assert "leaks" not in load_image_folder(leaky, image_size=8, seed=0, leaks="drop").split


def test_allowed_copies_stay_and_the_record_says_so(leaky: Path) -> None:
    dataset = load_image_folder(leaky, image_size=8, seed=0, leaks="allow")
    assert len(dataset.train) + len(dataset.val) == 22
    assert dataset.split["leaks"] == "not looked for"


def test_copies_are_found_without_decoding_a_test_image(leaky: Path) -> None:
    for path in ("test/class0/20.png", "train/class0/copy.png"):
        (leaky / path).write_bytes(b"no image")
    with pytest.raises(ValueError, match="are copies of test images"):
        load_image_folder(leaky, image_size=8, seed=0)


def test_a_class_of_copies_alone_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "train/class1")
    shutil.copytree(folder / "test/class1", folder / "train/class1")
    with pytest.raises(ValueError, match=r"all images of the class 'class1' in \S+train are copies of test images"):
        load_image_folder(folder, image_size=8, seed=0, leaks="drop")


def test_an_unknown_way_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="leaks is one of refuse, drop, allow, but got 'ignore'"):
        load_image_folder(folder, image_size=8, seed=0, leaks="ignore")  # type: ignore[arg-type]


def test_an_empty_test_image_is_refused_at_once(folder: Path) -> None:
    (folder / "test/class1/21.png").write_bytes(b"")
    with pytest.raises(BrokenImageError, match=r"class1/21\.png cannot be read .* is empty; replace or remove it"):
        load_image_folder(folder, image_size=8, seed=0)


def test_files_are_copies_when_all_their_bytes_agree(tmp_path: Path) -> None:
    """Also beyond what is compared first: the size, and the end."""
    end = bytes(5000)
    contents = {"test": b"a" + end, "copy": b"a" + end, "start": b"b" + end, "end": b"a" + end[1:] + b"c", "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    names = ["start", "copy", "end", "empty", "missing", "test"]
    assert copied_files(tmp_path, names, ["test", "empty", "missing"]) == {1: 0, 5: 0}
    assert copied_files(tmp_path, ["copy"], ["start", "test", "copy"]) == {0: 1}
    assert copied_files(tmp_path, [], ["test"]) == copied_files(tmp_path, ["test"], []) == {}


def test_many_files(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / str(number)).write_bytes(b"%d" % (number % 2000))
    names = [str(number) for number in range(3000)]
    assert copied_files(tmp_path, names[2000:], names[:1500]) == {i: i for i in range(1000)}


def test_arrays_are_compared_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 4, 4), dtype=np.uint8)
    almost = pixels[4:5].copy()
    almost[0, 0, 3, 3] ^= 1
    assert copied_arrays(pixels, np.concatenate([almost, pixels[[5, 2]]])) == [2, 5]


def test_the_digits_leak_nothing() -> None:
    dataset = load_digits(seed=0)
    test, train, val = (
        images.load(range(len(images))).numpy() for images in (dataset.open_test(), dataset.train, dataset.val)
    )
    assert copied_arrays(np.concatenate([train, val]), test) == []
