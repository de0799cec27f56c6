"""Recordings of inertial sensors: only the shape that the encoder was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from outmodal.data.decode import DecodeError
from outmodal.data.perceptor_inputs import perceptor_input
from outmodal.errors import UserError

from ..tiny import make_tiny


def test_time_becomes_the_last_axis() -> None:
    series = np.random.default_rng(0).standard_normal((2000, 6)).astype(np.float32)
    made = perceptor_input("imagebind", "imu").build(None, "imu", None)
    assert made(series, "").equal(torch.from_numpy(series.T.copy()))
    scaled = perceptor_input("imagebind", "imu", mean=(1.0,), std=(2.0,)).build(None, "imu", None)
    torch.testing.assert_close(scaled(series, ""), (torch.from_numpy(series.T.copy()) - 1) / 2)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1999, 6), "got .1999, 6"), ((2000, 3), "got .2000, 3"), ((6, 2000), "store time first")],
)
def test_other_shapes_are_refused(shape: tuple[int, int], said: str) -> None:
    made = perceptor_input("imagebind", "imu").build(None, "imu", None)
    with pytest.raises(DecodeError, match=said):
        made(np.zeros(shape, np.float32), "")


def test_a_data_set_of_another_shape_is_refused_at_once(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, samples=4, shards=1)
    with pytest.raises(UserError, match=r"series of shape \[16, 3\]"):
        perceptor_input("imagebind", "imu").build(dataset, "force", None)
    perceptor_input("imagebind", "imu", length=16, channels=3).build(dataset, "force", None)
