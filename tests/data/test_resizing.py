"""Resizing and cropping: PIL's pictures, any size of image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sarm_ray.data.resizing import fit, fitted_shape, resize_and_crop


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 48))
def test_every_size_becomes_a_square(height, width, size):
    image = np.full((height, width, 3), (10, 128, 250), dtype=np.uint8)
    result = resize_and_crop(image, size)
    assert (result.shape, result.dtype) == ((size, size, 3), np.uint8)
    assert (result == image[0, 0]).all()


def test_the_right_size_is_left_alone_and_the_crop_is_central():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert np.array_equal(resize_and_crop(image, 8), image)
    wide = np.arange(8 * 14 * 3, dtype=np.uint16).astype(np.uint8).reshape(8, 14, 3)
    assert np.array_equal(resize_and_crop(wide, 8), wide[:, 3:11])
    assert np.array_equal(resize_and_crop(wide.transpose(1, 0, 2), 8), wide[:, 3:11].transpose(1, 0, 2))


@pytest.mark.parametrize(("height", "width"), [(65, 97), (97, 65), (480, 640), (33, 200)])
def test_resizing_is_pils_bicubic_within_a_level(height, width):
    """numbers.md: torch's uint8 bicubic with antialias stays within one level of PIL's."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((width, height)))
    size = 32
    short = min(height, width)
    scaled = (int(size * width / short), int(size * height / short))
    reference = np.asarray(Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC)).astype(int)
    top, left = round((scaled[1] - size) / 2), round((scaled[0] - size) / 2)
    difference = np.abs(resize_and_crop(image, size) - reference[top : top + size, left : left + size])
    assert difference.max() <= 1


@pytest.mark.parametrize("size", [32, (24, 40)])
def test_what_is_fitted_has_the_shape_that_was_promised(size):
    images = [np.full((65, 97, 3), value, dtype=np.uint8) for value in (0, 255)]
    assert np.stack([fit(image, size) for image in images]).shape == fitted_shape(2, size)
