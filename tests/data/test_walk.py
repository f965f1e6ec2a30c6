"""The walk through class folders: what is read, what is left out and counted, and what is refused."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nasx.data import DataWarning, load_image_folder, load_test_folder
from nasx.data.walk import walk_classes
from tests.data.folders import write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path, {"train": 10, "test": 3}, ["a", "b", "c"])


def _load(folder: Path, **options: object):  # type: ignore[no-untyped-def]
    return load_image_folder(folder, image_size=8, seed=0, val_images=6, **options)  # type: ignore[arg-type]


def test_hidden_entries_are_no_images_and_no_classes_and_are_counted(folder: Path) -> None:
    clean = _load(folder)
    (folder / "test/a/._0000.png").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    for hidden in ("train/a/.ipynb_checkpoints", "train/.ipynb_checkpoints", "test/__MACOSX", "train/b/more/.cache"):
        shutil.copytree(folder / "train/a", folder / hidden)
    (folder / "train/b/notes.txt").touch()
    dataset = _load(folder)
    assert dataset.split == clean.split
    assert (
        "train/: 3 hidden files and folders are skipped: .ipynb_checkpoints, .ipynb_checkpoints, .cache"
        in dataset.remarks
    )
    assert "test/: 2 hidden files and folders are skipped: __MACOSX, ._0000.png" in dataset.remarks
    assert "train/: other files are skipped: 1 .txt" in dataset.remarks


def test_a_link_that_leads_back_is_refused(folder: Path) -> None:
    for name, target, back in (
        ("train/a/self", ".", "train/a"),
        ("train/a/up", "..", "train"),
        ("train/a/deep/down/back", "../..", "train/a"),
        ("train/again", ".", "train"),
        ("train/a/outside", "../..", "train"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
        with pytest.raises(ValueError, match=rf"is a link that leads back to {folder / back}, which it lies in"):
            _load(folder)
        (folder / name).unlink()
    assert len(_load(folder).train) == 24


def test_a_folder_that_is_reached_twice_is_refused(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "elsewhere/0.png")
    (folder / "train/a/link").symlink_to(folder / "elsewhere")
    assert len(_load(folder).train) == 25  # links as such are followed
    (folder / "train/b/link").symlink_to(folder / "elsewhere")
    with pytest.raises(ValueError, match=r"train/b/link and \S+train/a/link are one folder, reached through a link"):
        _load(folder)


def test_pipes_are_never_opened(folder: Path) -> None:
    os.mkfifo(folder / "train/a/pipe.png")
    dataset = _load(folder)
    assert len(dataset.train) == 24
    assert "train/: 1 pipes, sockets or devices are skipped: pipe.png" in dataset.remarks


def test_a_link_to_nowhere_is_an_image_that_is_missing(folder: Path) -> None:
    (folder / "test/a/0000.png").unlink()
    (folder / "test/a/0000.png").symlink_to("of/git/annex")
    with pytest.raises(ValueError, match=r"test/a/0000\.png cannot be read as an image: there is no such file"):
        _load(folder)


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "pbm", "avif"])
def test_formats_that_pillow_reads_are_images(folder: Path, suffix: str) -> None:
    kind = {"jfif": "JPEG", "JPE": "JPEG", "pbm": "PPM", "avif": "AVIF"}[suffix]
    image = Image.new("1" if suffix == "pbm" else "RGB", (8, 8))
    image.save(folder / f"train/a/new.{suffix}", format=kind)
    dataset = _load(folder)
    assert dataset.split["train"]["images"] == 25


def test_formats_that_pillow_does_not_read_are_counted_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {suffix: kind for suffix, kind in Image.registered_extensions().items() if suffix != ".heic"}
    monkeypatch.setattr(Image, "registered_extensions", lambda: known)
    for name in ("x.heic", "y.HEIC"):
        (folder / "train/a" / name).write_bytes(b"ftypheic")
    with pytest.warns(DataWarning, match=r"does not read their format: 2 \.heic; install pillow-heif"):
        dataset = _load(folder)
    assert any("2 .heic" in remark for remark in dataset.remarks)
    assert len(dataset.train) == 24


def test_file_names_of_any_bytes_are_read_and_shown(folder: Path) -> None:
    odd = os.fsencode(folder / "train/a") + b"/\xff.png"
    os.rename(folder / "train/a/0000.png", odd)  # noqa: PTH104
    dataset = _load(folder)
    assert len(dataset.train) == 24
    with open(odd, "wb"):  # noqa: PTH123
        pass
    with pytest.raises(ValueError, match=r"a/\\udcff\.png cannot be read as an image") as caught:
        _load(folder)
    str(caught.value).encode()  # can be printed anywhere


def test_class_names_that_are_no_text_are_refused(folder: Path) -> None:
    os.rename(folder / "train/a", os.fsencode(folder / "train") + b"/\xff")  # noqa: PTH104
    with pytest.raises(ValueError, match=r"the class folder \S+train/\\udcff is not named in UTF-8; rename it"):
        _load(folder)


def test_composed_and_decomposed_letters_are_one_class(tmp_path: Path) -> None:
    folder = write_images(tmp_path, {"train": 5, "test": 2}, ["café", "b"])
    (folder / "test/café").rename(folder / "test" / unicodedata.normalize("NFD", "café"))
    dataset = load_image_folder(folder, image_size=8, seed=0)
    assert dataset.classes == ("b", "café")
    assert len(dataset.open_test()) == 4
    shutil.copytree(folder / "train/café", folder / "train" / unicodedata.normalize("NFD", "café"))
    with pytest.raises(ValueError, match="two class folders 'café', which differ only in how accents are written"):
        load_image_folder(folder, image_size=8, seed=0)


NUMBERS = [str(number) for number in range(12)]


def test_classes_that_are_numbers_are_sorted_as_asked_and_what_is_assumed_is_said(tmp_path: Path) -> None:
    folder = write_images(tmp_path, {"train": 3, "test": 1}, NUMBERS)
    with pytest.warns(DataWarning, match=r"sorted as texts \(0, 1, 10, 11, 2, \.\.\.\).*set class_order='number'"):
        as_text = load_image_folder(folder, image_size=8, seed=0)
    assert as_text.classes == tuple(sorted(NUMBERS))
    assert any("sorted as texts" in remark for remark in as_text.remarks)
    with pytest.warns(DataWarning, match=r"sorted as numbers.*set class_order='text'"):
        as_numbers = load_image_folder(folder, image_size=8, seed=0, class_order="number")
    assert as_numbers.classes == tuple(NUMBERS)
    assert (as_text.split["class_order"], as_numbers.split["class_order"]) == ("text", "number")
    names = [as_numbers.classes[label] for label in as_numbers.open_test().labels]
    assert sorted(names) == sorted(NUMBERS)


def test_padded_numbers_and_names_have_one_order(tmp_path: Path) -> None:
    padded = write_images(tmp_path / "p", {"train": 2, "test": 1}, [f"{number:02d}" for number in range(12)])
    assert not any("sorted" in r for r in load_image_folder(padded, image_size=8, seed=0).remarks)
    named = write_images(tmp_path / "n", {"train": 2, "test": 1}, ["ant", "10"])
    with pytest.raises(ValueError, match="class_order='number' needs class folders called by numbers, but got 'ant'"):
        load_image_folder(named, image_size=8, seed=0, class_order="number")
    with pytest.raises(ValueError, match="class_order is one of text, number, but got 'size'"):
        load_image_folder(named, image_size=8, seed=0, class_order="size")  # type: ignore[arg-type]


def test_one_class_is_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path, {"train": 5, "test": 2}, ["only"])
    with pytest.raises(ValueError, match=r"train has one class, 'only'; telling classes apart needs at least two"):
        load_image_folder(folder, image_size=8, seed=0)


def test_members_are_sorted_by_name_whatever_the_order_of_creation(folder: Path) -> None:
    walked = walk_classes(folder / "train")
    assert walked.names == sorted(walked.names)
    assert walked.labels == ["abc".index(name.split("/")[1]) for name in walked.names]


# The layouts of published data sets


def test_a_flat_unlabelled_test_folder_does_not_hide_val(folder: Path) -> None:
    """As Kaggle's ImageNet has it."""
    (folder / "test").rename(folder / "val")
    plain = _load(folder)
    (folder / "test").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "test/ILSVRC2012_test_00000001.JPEG")
    dataset = _load(folder)
    assert dataset.split == plain.split
    assert dataset.remarks[0].startswith("test/ has no class folders")
    assert load_test_folder(folder, image_size=8).remarks[0].startswith("test/ has no class folders")


# Evaluation alone


@pytest.mark.parametrize("part", ["test", "val"])
def test_an_evaluation_needs_nothing_of_train(folder: Path, part: str) -> None:
    whole = _load(folder).open_test()
    pixels = whole.load(range(9))
    shutil.rmtree(folder / "train")
    (folder / "test").rename(folder / part)
    held_out = load_test_folder(folder, image_size=8)
    assert held_out.classes == ("a", "b", "c")
    assert held_out.per_class == {"a": 3, "b": 3, "c": 3}
    assert np.array_equal(held_out.images.labels, whole.labels)
    assert np.array_equal(held_out.images.load(range(9)), pixels)


def test_an_evaluation_takes_class_names_of_train_but_reads_no_image_of_it(folder: Path) -> None:
    (folder / "train/a/0000.png").write_bytes(b"damaged")
    os.mkfifo(folder / "train/a/pipe.png")
    shutil.rmtree(folder / "test/b")
    held_out = load_test_folder(folder, image_size=8)
    assert held_out.classes == ("a", "b", "c")
    assert held_out.per_class == {"a": 3, "b": 0, "c": 3}
    assert "1 of 3 classes have no test image, such as 'b'" in held_out.remarks


def test_an_evaluation_counts_labels_as_the_network_does(folder: Path) -> None:
    held_out = load_test_folder(folder, image_size=8, classes=["c", "none", "b", "a"])
    assert sorted(set(held_out.images.labels.tolist())) == [0, 2, 3]
    with pytest.raises(ValueError, match=r"test/b is none of the 2 classes \(a, c\)"):
        load_test_folder(folder, image_size=8, classes=["a", "c"])


def test_an_evaluation_finds_broken_images_and_says_which_order_it_assumed(tmp_path: Path) -> None:
    folder = write_images(tmp_path, {"test": 1}, NUMBERS)
    with pytest.warns(DataWarning, match="sorted as texts"):
        load_test_folder(folder, image_size=8)
    ordered = load_test_folder(folder, image_size=8, classes=NUMBERS)  # nothing is assumed
    assert ordered.images.labels.tolist() == [NUMBERS.index(name) for name in sorted(NUMBERS)]
    (folder / "test/3/0000.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"test/3/0000\.png cannot be read as an image: the file is empty"):
        load_test_folder(folder, image_size=8, classes=NUMBERS)


# Small and skewed data


def test_what_is_too_small_to_mean_much_is_said(tmp_path: Path) -> None:
    folder = write_images(tmp_path, {"train": 30, "test": 2}, ["a", "b", "rare"])
    for path in sorted((folder / "train/rare").iterdir())[1:]:
        path.unlink()
    dataset = load_image_folder(folder, image_size=8, seed=0, val_images=12)
    assert np.bincount(dataset.train.labels).tolist()[2] == 1
    assert "classes with a single training image are never validated: rare" in dataset.remarks
    assert any("with 12 validation images an accuracy of 50 % is uncertain by 28 points" in r for r in dataset.remarks)


@pytest.mark.parametrize(("size", "cut"), [((16, 8), "50%"), ((8, 32), "75%")])
def test_what_is_cut_off_images_of_one_shape_is_said(tmp_path: Path, size: tuple[int, int], cut: str) -> None:
    folder = write_images(tmp_path, {"train": 4, "test": 1}, ["a", "b"], size=size)
    (remark,) = [r for r in load_image_folder(folder, image_size=8, seed=0).remarks if "cut off" in r]
    assert remark.startswith(f"all training images are {size[0]} x {size[1]} pixels")
    assert f"{cut} of each is cut off" in remark


# The data set is known by its contents


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda folder: (folder / "train/a").rename(folder / "t"), None),
        (lambda folder: _repaint(folder / "train/a/0003.png"), {"train", "val"}),
        (lambda folder: _repaint(folder / "test/c/0002.png"), {"test"}),
        (lambda folder: _append(folder / "test/c/0002.png"), {"test"}),
    ],
    ids=["classes exchanged", "one of train", "one of test", "another size"],
)
def test_the_same_names_with_other_images_are_another_data_set(
    folder: Path, change: Callable[[Path], object], parts: set[str] | None
) -> None:
    before = _load(folder).split
    change(folder)
    if parts is None:
        (folder / "train/b").rename(folder / "train/a")
        (folder / "t").rename(folder / "train/b")
    after = _load(folder).split
    for part in ("train", "val", "test"):
        assert after[part]["sha256"] == before[part]["sha256"]  # of names alone
    changed = {part for part in ("train", "val", "test") if after[part] != before[part]}
    assert changed == {"train", "val"} if parts is None else changed and changed <= parts


def _repaint(path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def test_images_beside_the_class_folders_are_counted_and_named(folder: Path) -> None:
    image = next((folder / "train").glob("*/*.png"))
    shutil.copy(image, folder / "train" / "loose.png")
    (folder / "test" / "notes.txt").write_text("mine")
    remarks = load_image_folder(folder, image_size=8, seed=0).remarks
    assert "train/: 1 image in no class folder is skipped: loose.png; move it into one" in remarks
    assert "test/: other files are skipped: 1 .txt" in remarks
