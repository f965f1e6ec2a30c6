"""The first look at image files: what it finds before anything is trained, and what it does not."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from nasx.data import BrokenImageError, Files, decode, load_image_folder
from nasx.data.headers import look_at
from tests.data.folders import write_images

RANDOM = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
SUFFIXES = ("jpg", "png", "gif", "webp", "bmp")


def _written(path: Path, **options: object) -> Path:
    Image.fromarray(RANDOM).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_truncated_files_are_found(tmp_path: Path, suffix: str, share: float) -> None:
    path = _written(tmp_path / f"photo.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    try:
        decode(path)
        readable = True  # as where the checksum at the very end of a PNG is cut
    except BrokenImageError:
        readable = False
    assert readable <= (share == 0.999)
    headers = look_at(Files([path]), 64)
    assert [fault.path for fault in headers.faults.values()] == ([] if readable else [path])
    path.write_bytes(content)
    assert not look_at(Files([path]), 64).faults


@pytest.mark.parametrize("suffix", [*SUFFIXES, "tif", "ppm", "avif"])
def test_whole_files_are_not_suspected_nor_decoded(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _written(tmp_path / f"photo.{suffix}")
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    headers = look_at(Files([path]), 64)
    assert not headers.faults
    assert headers.shapes.tolist() == [[64, 64]]
    assert headers.sizes.tolist() == [path.stat().st_size]
    assert not headers.grey.any()


def test_what_follows_the_end_of_a_jpeg_does_not_make_it_truncated(tmp_path: Path) -> None:
    """Cameras append a second picture or notes of their own."""
    path = _written(tmp_path / "photo.jpg")
    path.write_bytes(path.read_bytes() + bytes(9000))
    assert not look_at(Files([path]), 64).faults


def test_a_header_longer_than_what_is_read_first_is_read_whole(tmp_path: Path) -> None:
    path = _written(tmp_path / "photo.jpg", icc_profile=bytes(60_000))
    assert look_at(Files([path]), 64).shapes.tolist() == [[64, 64]]


@pytest.mark.parametrize(
    ("mode", "grey"), [("L", True), ("1", True), ("LA", True), ("I;16", True), ("RGB", False), ("P", False)]
)
def test_grey_is_read_from_the_header(tmp_path: Path, mode: str, grey: bool) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "x.png")
    assert look_at(Files([tmp_path / "x.png"])).grey.tolist() == [grey]


def _png(path: Path, width: int, height: int) -> Path:
    """Write a PNG of any size whose pixels nobody can read."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "fault"),
    [
        ((1, 3_000_000), "it is 1 x 3,000,000 pixels: with its shorter side resized to 256, it would have more"),
        ((40_000, 7), "it is 40,000 x 7 pixels: with its shorter side resized to 256"),
        ((10_000, 10_000), "more than the 89,478,485 pixels"),
        ((100_000, 100_000), "more than the 89,478,485 pixels"),
    ],
)
def test_images_beyond_all_measure_are_found_before_they_are_decoded(
    tmp_path: Path, size: tuple[int, int], fault: str
) -> None:
    (broken,) = look_at(Files([_png(tmp_path / "huge.png", *size)]), 256).faults.values()
    assert fault in broken.fault
    assert not look_at(Files([_png(tmp_path / "fine.png", 3000, 2000)]), 256).faults


def test_pipes_and_folders_are_faults_and_nothing_waits_for_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    headers = look_at(Files([tmp_path / "pipe.png", tmp_path / "folder.png", tmp_path / "absent.png"]))
    assert sorted(headers.faults) == [0, 1, 2]
    assert headers.faults[2].fault == "there is no such file"


def test_contents_are_known_by_size_and_both_ends(tmp_path: Path) -> None:
    start = bytes(20_000)
    contents = [start, start, start[:-1] + b"x", b"x" + start[1:], start + b"\0", b"", b"a", b"b"]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    headers = look_at(Files(paths))
    keys = [headers.content_key(index) for index in range(len(paths))]
    assert keys[0] == keys[1]
    assert keys[5] is None  # an empty file is like no other
    assert len(set(keys)) == 7
    assert headers.take(np.array([3, 0])).content_key(1) == keys[0]
    digests = {look_at(Files(some)).digest() for some in (paths, paths[::-1], paths[1:])}
    assert len(digests) == 3


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_truncated_image_of_any_part_is_found_when_the_folder_is_loaded(tmp_path: Path, part: str) -> None:
    """Also where none of them is decoded, and before anything is trained."""
    folder = write_images(tmp_path, {"train": 8, "test": 3}, ["a", "b"], size=(24, 24))
    path = folder / part / "b" / "0002.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BrokenImageError, match=r"b/0002\.png.*replace or remove"):
        load_image_folder(folder, image_size=16, seed=0, max_bytes=0)
    path.unlink()
    assert load_image_folder(folder, image_size=16, seed=0, max_bytes=0).split[part]["images"] > 0


def test_every_header_is_counted(tmp_path: Path) -> None:
    folder = write_images(tmp_path, {"train": 6, "test": 2}, ["a", "b"])
    calls: list[tuple[int, int]] = []
    load_image_folder(folder, image_size=8, seed=0, on_check=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 16) for done in range(1, 17)]
