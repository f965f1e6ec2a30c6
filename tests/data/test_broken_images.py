"""Images that cannot be read: passed over in training, refused elsewhere."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nasx.data import (
    Augment,
    BrokenImageError,
    BrokenImageWarning,
    Files,
    PhotoSet,
    TrainBatches,
    channel_statistics,
    eval_batches,
    load_image_folder,
)
from nasx.data.broken import printable

SIZE = 8
FILES, COUNT = 50, 2000  # a thousandth of 2000 may be broken: two
PLAIN, VIEWS = Augment(), Augment(resized_crop=(0.08, 1.0))
ZEROS, ONES = (0.0,) * 3, (1.0,) * 3


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Write images of one colour each that says which image it is; half of them are of class 1."""
    paths = [tmp_path / f"{number:02d}.png" for number in range(FILES)]
    for number, path in enumerate(paths):
        Image.new("RGB", (SIZE, SIZE), (number, number, number)).save(path)
    return paths


def test_names_are_shown_as_they_are_but_for_what_moves_other_text() -> None:
    assert printable("chât \u202e<b>\n\x1b[0m") == r"chât \u202e<b>\n\x1b[0m"
    assert printable("飛行機 \U0001f468\u200d\U0001f469") == "飛行機 \U0001f468\u200d\U0001f469"


def many(files: list[Path], broken: dict[int, bytes] | None = None, *, in_memory: bool = False) -> PhotoSet:
    """Return two thousand images from fifty files, and from broken ones at some positions."""
    paths = [files[position % FILES] for position in range(COUNT)]
    for position, content in (broken or {}).items():
        paths[position] = files[0].with_name(f"broken{position}.png")
        paths[position].write_bytes(content)
    return PhotoSet(Files(paths), np.arange(COUNT) % 2, SIZE, in_memory=in_memory)


def batches_of(images: PhotoSet, augment: Augment, *, workers: int = 0, part: tuple[int, int] = (0, 1)) -> TrainBatches:
    return TrainBatches(
        images, batch_size=200, seed=5, augment=augment, workers=workers, part=part, classes=2, mean=ZEROS, std=ONES
    )


def numbers(batch: Tensor) -> list[int]:
    return [int(pixel * 255 + 0.5) for pixel in batch[:, 0, 0, 0]]


@pytest.mark.parametrize("augment", [PLAIN, VIEWS])
def test_another_image_of_its_class_takes_the_place_of_a_broken_one(files: list[Path], augment: Augment) -> None:
    broken = {301: b"", 502: b"no image"}
    images = many(files, broken)
    with pytest.warns(BrokenImageWarning) as messages:
        mended = list(batches_of(images, augment).steps(0, 20))
    healthy = list(batches_of(many(files), augment).steps(0, 20))
    places = []
    for step, ((pixels, labels), (whole, whole_labels)) in enumerate(zip(mended, healthy, strict=True)):
        assert torch.equal(labels, whole_labels)
        changed = (pixels != whole).flatten(1).any(dim=1)
        places += [(step // 10, row) for row in changed.nonzero()[:, 0].tolist()]
        assert all(number % 2 == label for number, label in zip(numbers(pixels), labels.tolist(), strict=True))
    assert len(places) == 4, "each of two broken images has one place in each of two epochs"
    assert sorted(images.broken) == [301, 502]
    assert [str(warning.message) for warning in messages] == [
        f"{images.broken[position]}; another image of its class takes its place" for position in images.broken
    ], "one warning for each, not one for each epoch"
    assert images.broken[301].path == images.path(301)
    assert images.broken[301].fault == "the file is empty"


def test_what_takes_the_place_changes_with_the_epoch(files: list[Path]) -> None:
    images, healthy = many(files, {301: b""}, in_memory=True), many(files, in_memory=True)
    taken = set()
    with pytest.warns(BrokenImageWarning):
        mended = list(batches_of(images, PLAIN).steps(0, 80))
    for (pixels, _), (whole, _) in zip(mended, batches_of(healthy, PLAIN).steps(0, 80), strict=True):
        taken |= {a for a, b in zip(numbers(pixels), numbers(whole), strict=True) if a != b}
    assert len(taken) > 3  # of eight epochs


@pytest.mark.filterwarnings("ignore::nasx.data.BrokenImageWarning")
@pytest.mark.parametrize("augment", [PLAIN, VIEWS])
def test_batches_with_broken_images_are_a_function_of_the_step_alone(files: list[Path], augment: Augment) -> None:
    """Whoever reads, from where on, in which parts and whatever is in memory or known already."""
    broken = {301: b"", 502: b"no image"}
    images = many(files, broken)
    steps = list(batches_of(images, augment).steps(0, 13))
    assert len(images.broken) == 2
    others = [
        batches_of(images, augment).steps(7, 13),
        batches_of(many(files, broken), augment).steps(7, 13),
        batches_of(many(files, broken, in_memory=True), augment).steps(7, 13),
        batches_of(many(files, broken), augment, workers=2).steps(7, 13),
    ]
    for other in others:
        for (pixels, labels), (expected, expected_labels) in zip(other, steps[7:], strict=True):
            assert torch.equal(pixels, expected)
            assert torch.equal(labels, expected_labels)
    ranks = [batches_of(many(files, broken), augment, part=(rank, 2)).steps(7, 13) for rank in range(2)]
    for (first, _), (second, _), (expected, _) in zip(*ranks, steps[7:], strict=True):
        assert torch.equal(torch.cat([first, second]), expected)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("augment", [PLAIN, VIEWS])
def test_more_than_a_thousandth_broken_stops_the_steps(files: list[Path], augment: Augment, workers: int) -> None:
    images = many(files, {4: b"", 301: b"", 502: b""})
    with (
        pytest.warns(BrokenImageWarning),
        pytest.raises(BrokenImageError, match=r"3 of 2,000 training images cannot be read, more than 0\.1%") as caught,
    ):
        list(batches_of(images, augment, workers=workers).steps(0, 10))
    assert all(f"broken{position}.png" in str(caught.value) for position in (4, 301, 502))
    assert "replace or remove them" in str(caught.value)
    assert {broken.path for broken in caught.value.broken} == {images.path(position) for position in (4, 301, 502)}


def test_the_images_of_workers_are_recorded_where_they_are_asked_for(files: list[Path]) -> None:
    images = many(files, {301: b""})
    with pytest.warns(BrokenImageWarning, match="broken301"):
        list(batches_of(images, VIEWS, workers=2).steps(0, 10))
    assert list(images.broken) == [301]


def test_a_class_without_another_image_is_an_error(files: list[Path]) -> None:
    images = many(files, {0: b""})
    images.labels = np.minimum(np.arange(COUNT), 1)
    with pytest.raises(BrokenImageError, match=r"broken0\.png.*is empty; no other training image of its class"):
        list(batches_of(images, PLAIN).steps(0, 10))


@pytest.mark.parametrize("in_memory", [True, False])
def test_statistics_leave_broken_images_out(files: list[Path], in_memory: bool) -> None:
    images = many(files, {301: b"", 502: b""}, in_memory=in_memory)
    with pytest.warns(BrokenImageWarning):
        mean, std = channel_statistics(images)
    grey = np.delete(np.arange(COUNT) % FILES, [301, 502]) / 255
    assert mean == pytest.approx([grey.mean()] * 3, abs=1e-12)
    assert std == pytest.approx([grey.std()] * 3, abs=1e-12)
    assert sorted(images.broken) == [301, 502]
    with pytest.warns(BrokenImageWarning), pytest.raises(BrokenImageError, match="more than"):
        channel_statistics(many(files, {4: b"", 1301: b"", 1302: b""}, in_memory=in_memory))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_refuses_broken_images(files: list[Path], in_memory: bool, workers: int) -> None:
    images = many(files, {301: b"", 310: b""}, in_memory=in_memory)
    batches = eval_batches(images, 100, ZEROS, ONES, workers=workers)
    for _ in range(3):
        next(batches)
    with pytest.raises(
        BrokenImageError, match=r"broken301\.png cannot be read as an image: the file is empty"
    ) as messages:
        next(batches)
    assert "replace or remove it" in str(messages.value)
    assert len(messages.value.broken) == 2
    assert not images.broken


def write_folder(root: Path, train: int) -> list[Path]:
    """Write `train` training and four test images of two classes; return the former."""
    files = []
    for number in range(train + 4):
        directory = root / ("train" if number < train else "test") / f"class{number % 2}"
        directory.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(directory / f"{number:04d}.png")
        files.append(directory / f"{number:04d}.png")
    return files[:train]


def test_a_folder_says_which_training_images_it_passes_over(tmp_path: Path) -> None:
    paths = write_folder(tmp_path, 1200)
    split = load_image_folder(tmp_path, image_size=4, seed=0, val_images=20)
    assert split.broken == ()
    kept = {split.train.path(index) for index in range(1180)}  # type: ignore[attr-defined]
    broken = next(path for path in paths if path in kept)
    broken.write_bytes(b"no image")
    with pytest.warns(BrokenImageWarning, match=broken.name):
        dataset = load_image_folder(tmp_path, image_size=4, seed=0, val_images=20)
    assert [image.path for image in dataset.broken] == [broken]
    assert dataset.split["train"]["sha256"] == split.split["train"]["sha256"]
    assert dataset.split["val"] == split.split["val"]
    with warnings.catch_warnings(action="error"):
        channel_statistics(dataset.train)


def test_a_folder_of_few_images_passes_over_none(tmp_path: Path) -> None:
    for path in write_folder(tmp_path, 40):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BrokenImageError, match=r"36 of 36 training images cannot be read.* and 33 more; replace"):
        load_image_folder(tmp_path, image_size=4, seed=0)


def test_validation_images_are_read_before_anything_is_trained(tmp_path: Path) -> None:
    only_validation = 4 * 3 * 4 * 4  # bytes of the four images
    for path in write_folder(tmp_path, 40):
        path.write_bytes(b"no image")
    with pytest.raises(BrokenImageError, match=r"\.png cannot be read as an image: the content has no known .*replace"):
        load_image_folder(tmp_path, image_size=4, seed=0, max_bytes=only_validation)


def test_progress_counts_the_images_that_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path, 40)
    messages: list[tuple[int, int]] = []

    def load(max_bytes: int) -> None:
        messages.clear()
        load_image_folder(
            tmp_path,
            image_size=4,
            seed=0,
            max_bytes=max_bytes,
            on_progress=lambda done, total: messages.append((done, total)),
        )

    load(1 << 30)
    assert messages == [(done, 40) for done in range(1, 41)]
    load(4 * 3 * 4 * 4)  # the four validation images alone
    assert messages == [(done, 4) for done in range(1, 5)]


def test_reading_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, 400)
    opened: list[object] = []
    once = Image.open

    def counted(file: Any) -> Image.Image:
        opened.append(file)
        return once(file)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "open", counted)
    with pytest.raises(KeyboardInterrupt):
        load_image_folder(tmp_path, image_size=4, seed=0, on_check=interrupt)
    assert len(opened) <= 404
    opened.clear()
    with pytest.raises(KeyboardInterrupt):
        load_image_folder(tmp_path, image_size=4, seed=0, on_progress=interrupt)
    assert 404 < len(opened) < 764  # all headers, and some images
