"""Inputs without information: zeros behind or before the normalisation, and a blank for text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outmodal.data.arrays import SeriesInput, VectorInput
from outmodal.data.manifest import Dataset
from outmodal.data.moving import VideoInput
from outmodal.data.noise import NoiseConfig
from outmodal.data.picture import ImageInput
from outmodal.data.tokens import TokenInput
from outmodal.data.transform import BaseInput
from outmodal.data.waveform import LogMelInput, WaveformInput
from tests.data.tiny import make_tiny

SERIES = SeriesInput(length=4, channels=2, mean=(1.0, 2.0), std=(0.5, 4.0))
IMAGE = ImageInput(size=(4, 4), channels=1, mean=(0.25,), std=(0.5,))
LOG_MEL = LogMelInput(seconds=0.5, sample_rate=8000, mean=-30.0, std=10.0)
INPUTS: list[BaseInput] = [
    SERIES,
    IMAGE,
    LOG_MEL,
    WaveformInput(seconds=0.1, sample_rate=8000),
    VectorInput(dim=5, normalize=True),
    VideoInput(frames=2, size=(4, 4)),
    LOG_MEL.model_copy(update={"clips": 2, "bands": "channels", "per_clip": True}),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("blank") / "tiny", 6, 1, ("text",), test=2)


@pytest.mark.parametrize("given", INPUTS, ids=lambda c: c.name)
def test_numbers_are_zeros_where_the_encoder_reads_them(given: BaseInput) -> None:
    transform = given.build(None, "m", None)
    assert torch.equal(transform.blank(), torch.zeros(transform.shape))
    raw = transform.blank(raw=True)
    assert (raw.shape, raw.dtype) == (transform.shape, transform.dtype)
    assert raw.isfinite().all()


def test_raw_zeros_are_normalised() -> None:
    raw = SERIES.build(None, "m", None).blank(raw=True)
    assert torch.equal(raw, torch.tensor([-2.0, -0.5]).expand(4, 2))
    assert torch.equal(IMAGE.build(None, "m", None).blank(raw=True), torch.full((1, 4, 4), -0.5))
    silence = LOG_MEL.build(None, "m", None).blank(raw=True)
    assert float(silence.max()) == float(silence.min()) < -3  # far below -30 dB


def test_silence_is_not_given_noise() -> None:
    noisy = LOG_MEL.model_copy(update={"noise": NoiseConfig(kinds=("white",))})
    plain = LOG_MEL.build(None, "m", None).blank(raw=True)
    assert torch.equal(noisy.build(None, "m", None).blank(raw=True), plain)


def test_text_is_a_blank_that_is_tokenised(data: Dataset, tmp_path: Path) -> None:
    transform = TokenInput(length=8).build(data, "text", tmp_path)
    blank = transform.blank()
    assert torch.equal(blank, transform(" ", "key"))
    assert torch.equal(blank, transform.blank(raw=True))
    assert blank.any()  # unlike what stands for an absent text in a batch
    assert not transform.zeros().any()
