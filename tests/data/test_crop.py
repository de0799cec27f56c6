"""Where crops lie, and that their pixels are Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import kstest

from outmodal.data.crop import (
    FILTERS,
    Box,
    centre_box,
    random_resized_crop_box,
    read_crop,
    whole_box,
)
from tests.data.pictures import smooth

RATIO = (3 / 4, 4 / 3)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32))
def test_every_box_lies_in_its_picture(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for box in (
        random_resized_crop_box(height, width, (0.08, 1.0), RATIO, rng),
        centre_box(height, width, (7, 5), 0.875),
        whole_box(height, width).scaled((height, width), (3, 4)),
    ):
        assert min(box) >= 0
        assert min(box.height, box.width) >= 1
    box = random_resized_crop_box(height, width, (0.08, 1.0), RATIO, rng)
    assert box.top + box.height <= height
    assert box.left + box.width <= width


def test_area_aspect_and_place_are_distributed_as_they_should_be() -> None:
    """A square picture and small crops, so that no draw is rejected."""
    rng = np.random.default_rng(0)
    boxes = np.array(
        [random_resized_crop_box(4000, 4000, (0.1, 0.5), RATIO, rng) for _ in range(2000)]
    )
    top, left, tall, wide = boxes.T
    area = tall * wide / 4000**2
    aspect = np.log(wide / tall)
    low, high = np.log(RATIO)
    for values, start, length in (
        (area, 0.1, 0.4),
        (aspect, low, high - low),
        (top / (4000 - tall + 1), 0, 1),
        (left / (4000 - wide + 1), 0, 1),
    ):
        assert kstest(values, "uniform", (start, length)).pvalue > 1e-3
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 100, Box(0, 43, 10, 13)), (100, 10, Box(43, 0, 13, 10))],
)
def test_what_never_fits_is_the_middle(height: int, width: int, expected: Box) -> None:
    rng = np.random.default_rng(0)
    box = random_resized_crop_box(height, width, (1.0, 1.0), RATIO, rng)
    assert box == expected


def test_the_middle_has_the_targets_aspect() -> None:
    assert centre_box(375, 500, (224, 224)) == Box(0, 62, 375, 375)
    assert centre_box(256, 341, (224, 224), 224 / 256) == Box(16, 58, 224, 224)
    assert centre_box(100, 100, (10, 20)) == Box(25, 0, 50, 100)


def pillow(part: NDArray[np.uint8], size: tuple[int, int], interpolation: str) -> NDArray[np.int64]:
    flat = part[:, :, 0] if part.shape[2] == 1 else part
    image = Image.fromarray(np.ascontiguousarray(flat))
    resized = np.asarray(image.resize((size[1], size[0]), FILTERS[interpolation]))
    return resized.reshape(*size, -1).astype(np.int64)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_bilinear_crops_are_pillows_within_one_grey_level(channels: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    for seed in range(25):
        pixels = smooth(150, 200, channels, seed)
        if kind == "noise":
            pixels = rng.integers(0, 256, pixels.shape, dtype=np.uint8)
        box = random_resized_crop_box(150, 200, (0.08, 1.0), RATIO, rng)
        part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        for size in ((64, 64), (112, 80)):
            found = read_crop(pixels, box, size).numpy().astype(np.int64)
            assert np.abs(found - pillow(part, size, "bilinear")).max() <= 1


def test_bicubic_crops_are_pillows_but_for_a_few_levels() -> None:
    pixels = smooth(150, 200)
    found = read_crop(pixels, whole_box(150, 200), (64, 64), "bicubic").numpy().astype(np.int64)
    assert np.abs(found - pillow(pixels, (64, 64), "bicubic")).max() <= 2


def test_a_crop_of_the_right_size_is_the_pixels_and_shares_nothing() -> None:
    pixels = smooth(20, 30)
    found = read_crop(pixels, Box(2, 3, 10, 12), (10, 12))
    np.testing.assert_array_equal(found.numpy(), pixels[2:12, 3:15])
    found.zero_()
    assert pixels[2:12, 3:15].any()


def test_sixteen_bits_and_many_channels() -> None:
    wide = (smooth(20, 30, 2).astype(np.uint16)) * 200
    found = read_crop(wide, whole_box(20, 30), (8, 9))
    assert found.dtype == torch.int32
    assert found.shape == (8, 9, 2)
    assert int(found.max()) <= int(wide.max())
    many = np.full((20, 30, 6), 51, np.uint8)
    assert read_crop(many, whole_box(20, 30), (8, 9)).unique().tolist() == [51]


def test_pixels_that_torch_would_not_take() -> None:
    pixels = smooth(20, 30)
    mirrored, locked = pixels[:, ::-1], pixels.copy()
    locked.flags.writeable = False
    box = whole_box(20, 30)
    assert read_crop(mirrored, box, (8, 8)).equal(read_crop(mirrored.copy(), box, (8, 8)))
    assert read_crop(locked, box, (8, 8)).equal(read_crop(pixels, box, (8, 8)))
