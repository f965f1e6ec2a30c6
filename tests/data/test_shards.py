"""Photographs in tar shards and in tables give what the same files in folders give."""

import io
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nasx.data import Augment, Dataset, TrainBatches, load_hf_folder, load_image_folder, load_shards
from tests.data.folders import write_images
from tests.data.packed import write_shards, write_table

CLASSES = ["ant", "bee", "cat"]
Loader = Callable[..., Dataset]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "folder", {"train": 10, "test": 3}, CLASSES, size=(20, 16))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


WRITERS = {
    "shards": lambda folder, root: write_shards(folder, root),
    "shards, labels in json": lambda folder, root: write_shards(folder, root, label="json"),
    "shards, labels are names": lambda folder, root: write_shards(folder, root, label="name"),
    "shards, val": lambda folder, root: write_shards(folder, root, held_out="val"),
    "table": lambda folder, root: write_table(folder, root),
    "table, labels are names": lambda folder, root: write_table(folder, root, labelled=False),
    "table, parquet": lambda folder, root: write_table(folder, root, form="parquet"),
    "table, validation": lambda folder, root: write_table(folder, root, held_out="validation"),
}


def _loader(name: str) -> Loader:
    return load_shards if name.startswith("shards") else load_hf_folder


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.usefixtures("cache")
def test_the_same_images_give_the_same_data_set(folder: Path, tmp_path: Path, name: str) -> None:
    root = WRITERS[name](folder, tmp_path / "packed")
    options = {"image_size": 12, "seed": 3, "val_images": 6, "max_bytes": 0}
    packed, plain = _loader(name)(root, **options), load_image_folder(folder, **options)  # type: ignore[arg-type]
    assert (packed.classes, packed.channels) == (plain.classes, plain.channels)
    for part in ("train", "val", "test"):
        for key in ("images", "per_class", "contents"):
            assert packed.split[part][key] == plain.split[part][key], (part, key)
    for ours, theirs in (
        (packed.train, plain.train),
        (packed.val, plain.val),
        (packed.open_test(), plain.open_test()),
    ):
        assert np.array_equal(ours.labels, theirs.labels)
        assert torch.equal(ours.load(range(len(ours))), theirs.load(range(len(theirs))))


@pytest.mark.parametrize("name", ["shards", "table"])
@pytest.mark.usefixtures("cache")
def test_batches_are_the_same_whoever_reads(folder: Path, tmp_path: Path, name: str) -> None:
    dataset = _loader(name)(WRITERS[name](folder, tmp_path / "packed"), image_size=12, seed=0, max_bytes=0)

    def batches(workers: int) -> TrainBatches:
        crops = Augment(resized_crop=(0.3, 1.0))
        return TrainBatches(
            dataset.train, batch_size=9, seed=1, mean=(0.5,) * 3, std=(0.2,) * 3, augment=crops, workers=workers
        )

    for (alone, _), (helped, _) in zip(batches(0).steps(2, 8), batches(2).steps(2, 8), strict=True):
        assert torch.equal(alone, helped)
    again = pickle.loads(pickle.dumps(dataset.train))
    assert torch.equal(again.load([0, 5]), dataset.train.load([0, 5]))


@pytest.mark.parametrize("name", ["shards", "table"])
@pytest.mark.usefixtures("cache")
def test_broken_images_copies_and_single_classes_are_found_in_them_too(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(folder / "test/ant/0000.png", folder / "train/bee/copy.png")
    leaky = WRITERS[name](folder, tmp_path / "leaky")
    with pytest.raises(ValueError, match=r"1 files of .* are copies of test images"):
        _loader(name)(leaky, image_size=12, seed=0)
    dropped = _loader(name)(leaky, image_size=12, seed=0, leaks="drop")
    assert len(dropped.split["leaks"]["dropped"]) == 1
    (folder / "train/bee/copy.png").unlink()
    path = folder / "test/cat/0001.png"
    path.write_bytes(path.read_bytes()[:-40])
    broken = WRITERS[name](folder, tmp_path / "broken")
    where = r"cat_0001\.png" if name == "shards" else r"row 7"
    with pytest.raises(ValueError, match=rf"{where}.* cannot be read as an image"):
        _loader(name)(broken, image_size=12, seed=0)


# Shards


def test_numbers_without_names_are_names_themselves(folder: Path, tmp_path: Path) -> None:
    root = write_shards(folder, tmp_path / "packed", names=False)
    assert load_shards(root, image_size=12, seed=0).classes == ("0", "1", "2")
    with pytest.raises(ValueError, match=r"have the label 2, which is none of the 2 classes \(ant, bee\)"):
        load_shards(root, image_size=12, seed=0, classes=["ant", "bee"])


def test_what_is_not_in_shards_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    root = write_shards(folder, tmp_path / "packed")

    def add(shard: str, members: dict[str, bytes]) -> Path:
        with tarfile.open(root / shard, "w") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return root / shard

    for members, message in (
        ({"a.cls": b"1"}, r"the sample 'a' of .*train-9\.tar has no image; it has a\.cls"),
        ({"a.png": b"x"}, r"the sample 'a' of .*train-9\.tar has no label: .*it has a\.png"),
        ({"a.png": b"x", "a.json": b"{}"}, "has no label"),
    ):
        added = add("train-9.tar", members)
        with pytest.raises(ValueError, match=message):
            load_shards(root, image_size=12, seed=0)
        added.unlink()
    (root / "train-9.tar").write_bytes(b"no archive at all")
    with pytest.raises(ValueError, match=r"train-9\.tar is no tar file that can be read"):
        load_shards(root, image_size=12, seed=0)
    (root / "train-9.tar").rename(root / "train-9.tar.gz")
    with pytest.raises(ValueError, match=r"train-9\.tar\.gz is compressed"):
        load_shards(root, image_size=12, seed=0)
    (root / "train-9.tar.gz").unlink()
    last = sorted(root.glob("test*.tar"))[-1]
    last.write_bytes(last.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"cannot be read as an image: its shard ends .* early|no tar file"):
        load_shards(root, image_size=12, seed=0)
    for path in root.glob("test*.tar"):
        path.unlink()
    with pytest.raises(ValueError, match=r"has neither test\*\.tar nor val\*\.tar"):
        load_shards(root, image_size=12, seed=0)
    with pytest.raises(ValueError, match=r"has no shards train\*\.tar"):
        load_shards(tmp_path, image_size=12, seed=0)


# Tables


@pytest.mark.usefixtures("cache")
def test_what_is_not_in_tables_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    root = write_table(folder, tmp_path / "packed")
    with pytest.raises(ValueError, match=r"train of .*packed has no column 'img', only image, label"):
        load_hf_folder(root, image_size=12, seed=0, image_column="img")
    with pytest.raises(ValueError, match="there is no directory"):
        load_hf_folder(tmp_path / "nowhere", image_size=12, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no data set that Hugging Face `datasets` reads"):
        load_hf_folder(tmp_path / "empty", image_size=12, seed=0)
    one = write_table(folder, tmp_path / "one", held_out="other")
    with pytest.raises(ValueError, match="has the splits train, other; needed are train, and test or validation with"):
        load_hf_folder(one, image_size=12, seed=0)


@pytest.mark.usefixtures("cache")
def test_a_test_split_without_labels_does_not_hide_the_validation_split(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    root = write_table(folder, tmp_path / "packed", held_out="validation")
    parts = datasets.load_from_disk(str(root))
    plain = load_hf_folder(root, image_size=12, seed=0)
    hidden = parts["validation"].map(lambda row: {"label": -1}, features=parts["validation"].features)
    datasets.DatasetDict({**parts, "test": hidden}).save_to_disk(str(tmp_path / "hub"))
    dataset = load_hf_folder(tmp_path / "hub", image_size=12, seed=0)
    assert dataset.split == plain.split
    assert dataset.remarks[0] == "test has no labels, so validation is tested on"


@pytest.mark.parametrize(
    ("module", "load", "extra"),
    [("webdataset.tariterators", load_shards, "shards"), ("datasets", load_hf_folder, "hf")],
)
def test_without_its_library_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, load: Loader, extra: str
) -> None:
    (tmp_path / "train-0.tar").touch()
    (tmp_path / "test-0.tar").touch()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'nasx\[{extra}\]'"):
        load(tmp_path, image_size=12, seed=0)
