"""Pictures: every mode a file may have, sizes, crops."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from outmodal.data.decode import DecodeError
from outmodal.data.encode import encode_png
from outmodal.data.manifest import Modality
from outmodal.data.perceptor_inputs import CroppedImageInput, perceptor_input
from outmodal.data.perceptor_inputs.geometry import crop_centre, crop_three, scaled_size

PNG = Modality(kind="image", ext="png")
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (40, 60, 3), np.uint8)
GREY = RNG.integers(0, 256, (40, 60, 1), np.uint8)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("filter", ["pillow", "tensor"])
def test_grey_is_three_equal_channels(filter: str) -> None:
    made = CroppedImageInput(size=16, filter=filter, mean=(0.5,), std=(0.5,)).build(None, "x", None)
    x = made(GREY, "")
    assert x.shape == (3, 16, 16)
    assert x[0].equal(x[1])
    assert x[0].equal(x[2])
    assert x.equal(made(np.repeat(GREY, 3, 2), ""))


@pytest.mark.parametrize("filter", ["pillow", "tensor"])
def test_palette_and_transparent_pictures_are_read_as_their_colours(filter: str) -> None:
    made = CroppedImageInput(size=16, filter=filter).build(None, "x", None)
    palette = Image.fromarray(COLOUR).quantize(16)
    assert palette.mode == "P"
    transparent = Image.fromarray(COLOUR)
    transparent.putalpha(128)
    for picture in (palette, transparent):
        expected = made(np.asarray(picture.convert("RGB")), "")
        assert made.from_bytes(PNG, png(picture), "").equal(expected)


@pytest.mark.parametrize("filter", ["pillow", "tensor"])
def test_16_bits_are_read_like_8(filter: str) -> None:
    made = CroppedImageInput(size=16, filter=filter).build(None, "x", None)
    wide = GREY.astype(np.uint16) * 257
    x = made.from_bytes(PNG, encode_png(wide), "")
    torch.testing.assert_close(x, made(GREY, ""))


def test_thermal_of_imagebind_is_one_plain_channel() -> None:
    made = perceptor_input("imagebind", "thermal").build(None, "x", None)
    white = made(np.full((30, 20, 3), 255, np.uint8), "")
    assert white.shape == (1, 224, 224)
    torch.testing.assert_close(white, torch.ones(1, 224, 224))


def test_thermal_of_languagebind_is_an_image() -> None:
    thermal = perceptor_input("languagebind", "thermal")
    assert thermal == perceptor_input("languagebind", "image")


def test_antialiasing_is_an_option() -> None:
    plain, smooth = (
        perceptor_input("languagebind", "image", antialias=a, size=8).build(None, "x", None)
        for a in (False, True)
    )
    assert (plain(COLOUR, "") - smooth(COLOUR, "")).abs().max() > 0.1


def test_misfits_are_refused() -> None:
    made = CroppedImageInput(size=16).build(None, "x", None)
    for value in (COLOUR[:, :, :2], COLOUR.astype(np.float32), COLOUR[:, 0], "text"):
        with pytest.raises(DecodeError):
            made(value, "")
    with pytest.raises(DecodeError, match="too long and thin"):
        made(np.zeros((1, 1000, 3), np.uint8), "")


def test_it_can_be_sent_to_a_worker() -> None:
    made = CroppedImageInput(size=16).build(None, "x", None)
    assert pickle.loads(pickle.dumps(made))(COLOUR, "").equal(made(COLOUR, ""))  # noqa: S301


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 300))
def test_crops_are_whole_squares(height: int, width: int, size: int) -> None:
    if max(height, width) > 100 * min(height, width):
        return
    scaled = scaled_size(height, width, size)
    assert min(scaled) == size
    planes = torch.empty(1, 1, device="meta").expand(scaled)
    for square in (crop_centre(planes, size), *crop_three(planes, size)):
        assert square.shape == (size, size)
