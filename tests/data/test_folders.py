import hashlib
import random
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nasx.data import Files, PhotoSet, channel_statistics, load_digits, load_image_folder, stratified_split
from nasx.data.decode import pillow

CIFAR10 = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-images.tar.xz"
TRAIN_IMAGES, TEST_IMAGES = 100, 20  # per class, of the 5,000 and 1,000 there are


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not CIFAR10.exists():
        pytest.skip(f"needs {CIFAR10.name} in the folder shared/data beside the checkout")
    root = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(CIFAR10) as archive:
        for member in archive:
            name = Path(member.name)
            if member.isfile() and int(name.stem) < (TRAIN_IMAGES if name.parts[0] == "train" else TEST_IMAGES):
                archive.extract(member, root, filter="data")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write digits as PNG files: train/ with ten of each of three classes, test/ with two."""
    return write_digits(tmp_path, {"train": 10, "test": 2})


def write_digits(root: Path, parts: dict[str, int]) -> Path:
    dataset = load_digits(seed=0)
    for part, count in parts.items():
        digits = dataset.train if part == "train" else dataset.val  # no test image is a training image
        for label, name in enumerate(("one", "three", "two")):
            directory = root / part / name
            directory.mkdir(parents=True)
            for number, index in enumerate(np.flatnonzero(digits.labels == label)[:count]):
                Image.fromarray(digits.load([index])[0, 0].numpy()).save(directory / f"{number}.png")
    return root


def test_cifar10_is_read_as_published(cifar10: Path) -> None:
    dataset = load_image_folder(cifar10, image_size=32, seed=0, val_images=200)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert dataset.classes == tuple(names.split())
    assert [len(dataset.train), len(dataset.val), len(dataset.open_test())] == [800, 200, 200]
    assert np.bincount(dataset.train.labels).tolist() == [80] * 10
    assert np.bincount(dataset.val.labels).tolist() == [20] * 10
    mean, std = channel_statistics(dataset.train)  # published values are of all images; these are 800
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.025)
    assert std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.025)


def test_images_of_the_right_size_are_the_files_pixels(cifar10: Path) -> None:
    test = load_image_folder(cifar10, image_size=32, seed=0).open_test()
    files = sorted((cifar10 / "test").glob("*/*.jpg"))
    chosen = [0, 57, 199, 57]
    expected = np.stack([np.asarray(Image.open(files[index])) for index in chosen]).transpose(0, 3, 1, 2)
    loaded = test.load(chosen)
    assert loaded.dtype == torch.uint8
    assert np.array_equal(loaded.numpy(), expected)


def test_a_large_set_is_decoded_on_demand_and_alike(folder: Path) -> None:
    size = 27 * 8 * 8
    kept = load_image_folder(folder, image_size=8, seed=0, max_bytes=size).train
    on_demand = load_image_folder(folder, image_size=8, seed=0, max_bytes=size - 1).train
    chosen = np.random.default_rng(0).permutation(27)[:9]
    assert torch.equal(kept.load(chosen), on_demand.load(chosen))
    shutil.rmtree(folder)
    kept.load(range(27))
    with pytest.raises(ValueError, match="cannot be read as an image"):
        on_demand.load(range(27))


def test_grey_images_become_rgb(folder: Path) -> None:
    dataset = load_image_folder(folder, image_size=8, seed=0, channels=3)
    assert dataset.channels == 3
    images = dataset.train.load(range(len(dataset.train)))
    assert images.shape == (27, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])


def test_a_folder_of_grey_images_has_one_channel(folder: Path) -> None:
    dataset = load_image_folder(folder, image_size=8, seed=0)
    assert dataset.channels == 1
    grey = dataset.train.load(range(27))
    assert grey.shape == (27, 1, 8, 8)
    colours = load_image_folder(folder, image_size=8, seed=0, channels=3).train.load(range(27))
    assert torch.equal(grey[:, 0], colours[:, 1])
    assert dataset.open_test().load([0]).shape == (1, 1, 8, 8)
    Image.new("RGB", (8, 8), (9, 0, 0)).save(folder / "test" / "two" / "1.png")
    assert load_image_folder(folder, image_size=8, seed=0).channels == 3  # one has colours, though not in train/
    assert load_image_folder(folder, image_size=8, seed=0, channels=1).train.load([0]).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="channels is 1 or 3, or None"):
        load_image_folder(folder, image_size=8, seed=0, channels=2)  # type: ignore[arg-type]


def test_parts_are_stratified_disjoint_and_together_all_of_train(folder: Path) -> None:
    dataset = load_image_folder(folder, image_size=8, seed=0, val_images=6)
    assert dataset.classes == ("one", "three", "two")
    assert np.bincount(dataset.val.labels).tolist() == [2, 2, 2]
    names = sorted(path.relative_to(folder).as_posix() for path in (folder / "train").glob("*/*"))
    labels = np.array([dataset.classes.index(name.split("/")[1]) for name in names])
    for part, indices in zip(("train", "val"), stratified_split(labels, 6, seed=0), strict=True):
        joined = "".join(f"{names[index]}\n" for index in indices)
        assert dataset.split[part]["sha256"] == hashlib.sha256(joined.encode()).hexdigest()
    assert dataset.split["test"]["per_class"] == {"one": 2, "three": 2, "two": 2}
    assert load_image_folder(folder, image_size=8, seed=1, val_images=6).split["val"] != dataset.split["val"]


def test_the_order_of_creation_does_not_matter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copy")
    files = sorted(folder.rglob("*.png"))
    random.Random(0).shuffle(files)
    for file in files:
        target = copy / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    one, other = (load_image_folder(root, image_size=8, seed=0) for root in (folder, copy))
    assert one.split == other.split
    assert torch.equal(one.train.load(range(27)), other.train.load(range(27)))


def test_val_is_the_test_set_only_where_there_is_no_test(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    as_val = load_image_folder(folder, image_size=8, seed=0)
    assert as_val.split["test"]["images"] == 6
    assert "val/" in as_val.split["rule"]
    write_digits(folder, {"test": 5})
    both = load_image_folder(folder, image_size=8, seed=0)
    assert len(both.open_test()) == 15
    assert both.split["train"] == as_val.split["train"]


def test_test_images_are_not_read_before_they_are_asked_for(folder: Path) -> None:
    for file in (folder / "test").rglob("*.png"):
        content = bytearray(file.read_bytes())
        content[-20] ^= 255  # inside the compressed pixels
        file.write_bytes(content)
    dataset = load_image_folder(folder, image_size=8, seed=0)
    dataset.train.load([0])
    dataset.val.load([0])
    test = dataset.open_test()
    with pytest.raises(ValueError, match=r"one.0\.png cannot be read as an image.*replace or remove it"):
        test.load([0])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=rf"photo\.{suffix} cannot be read as an image"):
        PhotoSet(Files([path]), np.zeros(1, dtype=np.int64), 64, in_memory=True).load([0])


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (96, 48)])
def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path, width: int, height: int) -> None:
    """A red centre square between blue ends leaves a red image, whatever the direction and the scale."""
    side = min(width, height)
    image = Image.new("RGB", (width, height), (0, 0, 255))
    image.paste((255, 0, 0), ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
    path = tmp_path / "flag.png"
    image.save(path)
    loaded = PhotoSet(Files([path]), np.zeros(1, dtype=np.int64), 16, in_memory=False).load([0])
    assert loaded.shape == (1, 3, 16, 16)
    inner = loaded[0, :, 2:-2, 2:-2]
    assert (inner[0] == 255).all()
    assert (inner[1:] == 0).all()


def test_a_class_may_hold_folders_and_other_files(folder: Path) -> None:
    (folder / "train" / "one" / "more").mkdir()
    (folder / "train" / "one" / "0.png").rename(folder / "train" / "one" / "more" / "0.PNG")
    (folder / "train" / "one" / "notes.txt").write_text("no image")
    (folder / "train" / "list.csv").write_text("no class")
    assert load_image_folder(folder, image_size=8, seed=0).split["train"]["images"] == 27


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no directory .*nowhere; name the one that holds train/"):
        load_image_folder(tmp_path / "nowhere", image_size=8, seed=0)


def test_no_train(folder: Path) -> None:
    (folder / "train").rename(folder / "training")
    with pytest.raises(ValueError, match="has no train/"):
        load_image_folder(folder, image_size=8, seed=0)


def test_neither_test_nor_val(folder: Path) -> None:
    (folder / "test").rename(folder / "testing")
    with pytest.raises(ValueError, match="has neither test/ nor val/"):
        load_image_folder(folder, image_size=8, seed=0)


@pytest.mark.parametrize("part", ["train", "test"])
def test_no_classes(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    (folder / part).mkdir()
    with pytest.raises(ValueError, match=f"{part} has no class folders"):
        load_image_folder(folder, image_size=8, seed=0)


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_class(folder: Path, part: str) -> None:
    for file in (folder / part / "three").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=f"{part}/three holds no image"):
        load_image_folder(folder, image_size=8, seed=0)


def test_classes_that_differ(folder: Path) -> None:
    (folder / "test" / "two").rename(folder / "test" / "zwei")
    with pytest.raises(ValueError, match="class 'two' in train/ but not in test/"):
        load_image_folder(folder, image_size=8, seed=0)
    shutil.copytree(folder / "train" / "two", folder / "test" / "two")
    with pytest.raises(ValueError, match="class 'zwei' in test/ but not in train/"):
        load_image_folder(folder, image_size=8, seed=0)


def test_too_many_validation_images(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"1 to 29 of 30 training images can be held out for validation, but got 30"):
        load_image_folder(folder, image_size=8, seed=0, val_images=30)
    with pytest.raises(ValueError, match=r"28 validation images of 30 leave some class.*hold out 27 at most"):
        load_image_folder(folder, image_size=8, seed=0, val_images=28)
    with pytest.raises(ValueError, match="but got 0"):
        load_image_folder(folder, image_size=8, seed=0, val_images=0)
    with pytest.raises(ValueError, match="one validation image cannot tell networks apart"):
        load_image_folder(folder, image_size=8, seed=0, val_images=1)


def test_impossible_sizes(folder: Path) -> None:
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel, but got 0"):
        load_image_folder(folder, image_size=0, seed=0)
    with pytest.raises(ValueError, match=r"must lie between 0 and 1, but got val_fraction=1\.0"):
        load_image_folder(folder, image_size=8, seed=0, val_fraction=1.0)


def test_without_pillow_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    pillow.cache_clear()  # which found it
    with pytest.raises(ImportError, match=r"pip install 'nasx\[recipes\]'"):
        load_image_folder(folder, image_size=8, seed=0)
