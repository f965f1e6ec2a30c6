import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from nasx.data.photos import fit_photo, resized_side

SIDES = st.integers(1, 500)


@given(SIDES, SIDES, st.sampled_from([1, 3]), st.sampled_from([16, 32, 65, 224]))
def test_photographs_are_resized_and_cropped_as_torchvision_does(
    width: int, height: int, channels: int, image_size: int
) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, channels), dtype=np.uint8)
    photo = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    resized = functional.resize(photo, resized_side(image_size), InterpolationMode.BICUBIC)
    expected = functional.pil_to_tensor(functional.center_crop(resized, image_size))
    assert np.array_equal(fit_photo(photo, image_size), expected)


@pytest.mark.parametrize("image_size", [32, 64])
def test_small_images_of_the_size_are_kept_as_they_are(image_size: int) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(image_size, image_size, 3), dtype=np.uint8)
    assert np.array_equal(fit_photo(Image.fromarray(pixels), image_size), pixels.transpose(2, 0, 1))
