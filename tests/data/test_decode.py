"""What becomes of every kind of image file, and what is said of files that give none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from nasx.data import BrokenImageError, Files, PhotoSet, decode

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (12, 9, 3), dtype=np.uint8)


def decoded(image: Image.Image, path: Path, **options: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image.save(path, **options)
    return np.asarray(decode(path))


def fault_of(path: Path) -> str:
    with pytest.raises(BrokenImageError, match="replace or remove it") as caught:
        decode(path)
    (broken,) = caught.value.broken
    assert broken.path == path
    assert str(broken) == f"{path} cannot be read as an image: {broken.fault}"
    assert str(caught.value).startswith(str(broken))
    return broken.fault


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr"])
def test_opaque_8_bit_images_are_converted_as_pillow_does(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(COLOUR).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    assert np.abs(decoded(image, tmp_path / "image.tif").astype(int) - expected).max() <= (2 if mode == "YCbCr" else 0)


def test_a_cmyk_jpeg(tmp_path: Path) -> None:
    """Ink that is absent is white; cyan ink takes red away."""
    paper = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    paper.paste((255, 0, 0, 0), (0, 0, 16, 8))
    pixels = decoded(paper, tmp_path / "image.jpg", quality=100)
    assert np.abs(pixels[0, 0].astype(int) - (0, 255, 255)).max() <= 2
    assert np.abs(pixels[-1, 0].astype(int) - 255).max() <= 2


@pytest.mark.parametrize(("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2")])
def test_16_bits_are_divided_by_257(tmp_path: Path, suffix: str, dtype: str) -> None:
    """8 bits written as 16, v -> 257 v, come back; between them, the nearest; and nothing is clipped."""
    levels = np.arange(256)
    stored = np.stack([np.clip(257 * levels + shift, 0, 65535) for shift in (-128, 0, 128)]).astype(dtype)
    image: Any = Image.fromarray(stored)
    pixels = decoded(image, tmp_path / f"image.{suffix}")
    assert pixels.shape == (3, 256, 3)
    assert (pixels == levels[None, :, None]).all()


def test_16_bit_images_are_no_white_rectangles_in_batches(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40 * 257, dtype=np.uint16)).save(tmp_path / "image.png")
    images = PhotoSet(Files([tmp_path / "image.png"]), np.zeros(1, dtype=np.int64), 8, in_memory=False)
    assert torch.equal(images.load([0]), torch.full((1, 3, 8, 8), 40, dtype=torch.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    grey, alpha = np.full((1, 3), 100, dtype=np.uint8), np.array([[0, 255, 51]], dtype=np.uint8)
    bands = [grey] * (len(mode) - 1) + [alpha]
    pixels = decoded(Image.fromarray(np.stack(bands, axis=2)), tmp_path / "image.png")
    assert pixels[0].tolist() == [[255] * 3, [100] * 3, [255 - 31] * 3]  # a fifth of the way from 255 to 100


def test_transparent_colours_are_laid_over_white(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    expected = [[255, 255, 255], [40, 50, 60]]
    assert decoded(palette, tmp_path / "one.png", transparency=0)[0].tolist() == expected
    assert decoded(palette, tmp_path / "several.png", transparency=bytes([0, 255]))[0].tolist() == expected
    assert decoded(palette, tmp_path / "one.gif", transparency=0)[0].tolist() == expected
    assert decoded(palette.convert("RGB"), tmp_path / "rgb.png", transparency=(10, 20, 30))[0].tolist() == expected
    assert decoded(palette, tmp_path / "none.png")[0].tolist() == [[10, 20, 30], [40, 50, 60]]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_animations_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    if suffix == "webp" and not features.check("webp"):
        pytest.skip("this Pillow is built without WebP")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    pixels = decoded(frames[0], tmp_path / f"image.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("side", [11, 20])  # Pillow itself warns from the bound on, and refuses from twice that on
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (10, 10)).save(tmp_path / "image.png")
    decode(tmp_path / "image.png")
    Image.new("RGB", (side, side)).save(tmp_path / "bomb.png")
    assert fault_of(tmp_path / "bomb.png") == ("it has more than the 100 pixels that PIL.Image.MAX_IMAGE_PIXELS allows")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(tmp_path / "bomb.png").size == (side, side)


def test_files_that_are_no_image(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    assert fault_of(path) == "there is no such file"
    path.touch()
    assert fault_of(path) == "the file is empty"
    path.write_text("<html>404 Not Found</html>")
    assert fault_of(path) == "the content has no known image format"
    assert "directory" in fault_of(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    for length in (len(content) // 2, 30, 5):
        path.write_bytes(content[:length])
        assert fault_of(path)


def test_pixels_without_a_defined_scale(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "float.tif")
    assert "floating-point" in fault_of(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 65536, dtype=np.int32)).save(tmp_path / "long.tif")
    assert fault_of(tmp_path / "long.tif") == "its pixels are 65536 to 65536, outside of 16 bits"
