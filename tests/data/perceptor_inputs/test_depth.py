"""Depth maps in shares and as disparity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from outmodal.data.decode import DecodeError
from outmodal.data.encode import encode_png
from outmodal.data.manifest import Modality
from outmodal.data.perceptor_inputs import DepthInput, perceptor_input
from outmodal.data.transform import Transform
from outmodal.errors import UserError

PNG = Modality(kind="image", ext="png")


def flat(millimetres: int) -> np.ndarray:
    return np.full((8, 12, 1), millimetres, np.uint16)


def build(**settings: object) -> Transform:
    return DepthInput(size=4, **settings).build(None, "depth", None)


@pytest.mark.parametrize(("stored", "share"), [(2500, 0.25), (0, 0.001), (65535, 1.0)])
def test_share_of_the_farthest(stored: int, share: float) -> None:
    x = build().from_bytes(PNG, encode_png(flat(stored)), "")
    torch.testing.assert_close(x, torch.full((3, 4, 4), share))


def test_share_of_the_maps_own_maximum() -> None:
    depth = flat(20_000)
    depth[:, :6] = 5000
    x = build(farthest=0.0)(depth, "")
    assert x.max() > 0.99
    torch.testing.assert_close(x[0, :, 0], torch.full((4,), 0.25), atol=0.05, rtol=0)


def test_disparity_of_imagebind() -> None:
    made = perceptor_input("imagebind", "depth", focal=500.0).build(None, "depth", None)
    x = made(flat(2000), "")
    assert x.shape == (1, 224, 224)
    expected = (0.075 * 500 / 2 - 0.0418) / 0.0295
    torch.testing.assert_close(x, torch.full_like(x, expected), rtol=1e-5, atol=0)


def test_rotated_bits_are_turned_back() -> None:
    depth = np.random.default_rng(0).integers(0, 2**16, (8, 8, 1)).astype(np.uint16)
    rotated = (depth << 3) | (depth >> 13)
    assert build(rotated=3)(rotated, "").equal(build()(depth, ""))


def test_other_pictures_are_refused() -> None:
    with pytest.raises(DecodeError, match="16 bits in millimetres, got uint8"):
        build()(np.zeros((8, 8, 1), np.uint8), "")
    colours = np.zeros((8, 8, 3), np.uint16)
    build()(colours, "")  # one channel three times
    colours[0, 0, 1] = 1
    with pytest.raises(DecodeError, match="one channel, got 3"):
        build()(colours, "")


def test_settings_that_contradict() -> None:
    with pytest.raises(UserError, match="not beyond nearest"):
        perceptor_input("languagebind", "depth", farthest=0.001)
