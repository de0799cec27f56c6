"""Sounds: rates, lengths, channels."""

from __future__ import annotations

import io
import logging
import pickle

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.data.decode import DecodeError
from outmodal.data.encode import encode_wav
from outmodal.data.fbank import fbank
from outmodal.data.manifest import Modality
from outmodal.data.perceptor_inputs import FbankInput, perceptor_input
from outmodal.data.perceptor_inputs.audio import Fbank
from outmodal.data.resample import resample

WAV = Modality(kind="audio", ext="wav")
RNG = np.random.default_rng(0)


def noise(seconds: float, rate: int = 16_000) -> np.ndarray:
    return (RNG.standard_normal(round(seconds * rate)) * 0.1).astype(np.float32)


def build(**settings: object) -> Fbank:
    made = FbankInput(**{"mels": 16, "frames": 100, **settings}).build(None, "sound", None)
    assert isinstance(made, Fbank)
    return made


def test_another_rate_is_resampled_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    made = build()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            made.from_bytes(WAV, encode_wav(noise(1, 8000), 8000), "")
    assert made.resampled.count == 3
    assert [r.getMessage() for r in caplog.records] == [
        "sound of 'sound' at 8000 Hz is resampled to 16000 Hz"
    ]
    made.from_bytes(WAV, encode_wav(noise(1), 16_000), "")
    assert made.resampled.count == 3


def test_a_known_rate_is_said_before_workers_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = pickle.loads(pickle.dumps(build(rate=8000)))  # noqa: S301
        made(noise(1, 8000), "")
    assert len(caplog.records) == 1


def test_the_files_own_rate_counts_not_the_manifests() -> None:
    """A tone of 440 Hz stays where it is, whatever rate the data set is decoded to elsewhere."""
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100).astype(np.float32) * 0.5
    spec = Modality(kind="audio", ext="wav", sample_rate=8000)
    made = build(mels=64)
    x = made.from_bytes(spec, encode_wav(tone, 44_100), "")
    same = made(np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32) * 0.5, "")
    assert x[0, :, 50].argmax() == same[0, :, 50].argmax()


def test_the_first_channel_is_read() -> None:
    left, right = noise(1), noise(1)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, right], 1), 16_000, "FLOAT", format="WAV")
    made = build()
    x = made.from_bytes(WAV, buffer.getvalue(), "")
    assert x.equal(made(left, ""))
    assert x.equal(made(np.stack([left, right]), ""))


def test_a_short_sound_is_repeated_from_its_start() -> None:
    wave = noise(0.5)
    x = build()(wave, "")
    once = torch.from_numpy(fbank(wave - wave.mean(), 16)).T
    cycle = once.shape[1]
    assert cycle == 48
    for start in (0, cycle, 2 * cycle):
        part = x[0, :, start : start + cycle]
        assert part.equal(once[:, : part.shape[1]])


def test_a_long_sound_fills_the_channels_from_three_parts() -> None:
    made, first = build(), build(start="first")
    wave = noise(4)
    x = made(wave, "a")
    assert x.equal(made(wave, "b"))  # nothing is drawn
    assert not x[0].equal(x[1])
    frames = 398
    parts = np.array_split(np.arange(frames - 100 + 1), 3)
    assert first.starts(frames) == [int(p[0]) for p in parts]
    assert all(s in p for s, p in zip(made.starts(frames), parts, strict=True))


@pytest.mark.parametrize("extra", [1, 2, 3])
def test_a_sound_hardly_longer_has_parts_without_a_start(extra: int) -> None:
    made = build()
    assert len(made.starts(100 + extra)) == 3
    assert made(noise(1.015 + extra / 100), "").isfinite().all()


def test_clips_are_filled_up_before_normalisation() -> None:
    made = build(clips=3, clip_seconds=0.5, mean=-4.0, std=2.0)
    x = made(noise(0.5), "")
    assert x.shape == (3, 1, 16, 100)
    assert x[0].equal(x[2])
    assert (x[..., 48:] == 2.0).all()


def test_carried_offset_changes_only_what_is_shared() -> None:
    wave = noise(1) + np.float32(0.3)
    kept, carried = (build(clips=3, clip_seconds=0.6, carry_offset=c)(wave, "") for c in (0, 1))
    torch.testing.assert_close(kept[0], carried[0])
    assert (kept[1] - carried[1]).abs().max() > 0.1
    assert wave.mean() > 0.2  # the caller's array is as it was


def test_too_short_or_not_a_sound() -> None:
    for value in (np.zeros(399, np.float32), np.zeros(0, np.float32), "text", np.zeros((2, 2, 2))):
        with pytest.raises(DecodeError):
            build()(value, "")
    with pytest.raises(DecodeError):
        build().from_bytes(WAV, b"RIFF", "")


@given(
    st.integers(1, 500),
    st.sampled_from([(1, 16), (3, 7), (441, 160), (16_000, 8000), (8001, 16_000), (5, 5)]),
)
@settings(max_examples=40, deadline=None)
def test_resampled_length(samples: int, rates: tuple[int, int]) -> None:
    old, new = rates
    made = resample(np.ones(samples, np.float32), old, new)
    assert len(made) == -(-samples * new // old)
    assert made.dtype == np.float32


def test_resampling_keeps_a_tone() -> None:
    old, new = 44_100, 16_000
    tone = np.sin(2 * np.pi * 1000 * np.arange(old) / old).astype(np.float32)
    expected = np.sin(2 * np.pi * 1000 * np.arange(new) / new)
    assert np.abs(resample(tone, old, new) - expected)[100:-100].max() < 5e-3


def test_resampling_refuses_what_would_be_too_large() -> None:
    with pytest.raises(DecodeError, match="too many"):
        resample(np.zeros(100_000, np.float32), 1, 16_000)


def test_presets_give_finite_tensors_of_their_shape() -> None:
    data = encode_wav(noise(1.3, 22_050), 22_050)
    for family, shape in (("imagebind", (3, 1, 128, 204)), ("languagebind", (3, 112, 1036))):
        made = perceptor_input(family, "audio").build(None, "sound", None)
        x = made.from_bytes(WAV, data, "")
        assert x.shape == made.shape == shape
        assert x.isfinite().all()
