"""Damage to sounds: the ratio, the decay, the limit and the share that are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from outmodal.data.corruptions import CORRUPTIONS, SEVERITIES, generator, sounds
from outmodal.data.manifest import Modality

RATE = 8000
SPEC = Modality(kind="audio", ext="wav", sample_rate=RATE)
TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_at_its_ratio(severity: int) -> None:
    noisy = np.asarray(sounds.noise(SPEC, TONE, severity, generator(0, "noise", "k")))
    ratio = 10 * np.log10((TONE**2).mean() / ((noisy - TONE) ** 2).mean())
    assert ratio == pytest.approx(sounds.SNR[severity - 1], abs=0.3)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_tail_that_falls_by_60_decibels(severity: int) -> None:
    seconds, direct = sounds.REVERBERATION[severity - 1]
    click = np.zeros(2 * RATE, np.float32)
    click[0] = 1.0
    wet = np.asarray(sounds.reverberation(SPEC, click, severity, generator(0, "r", "k"))) ** 2
    tail = wet[1:]
    assert 10 * np.log10(wet[0] / tail.sum()) == pytest.approx(direct, abs=0.2)
    assert wet.mean() == pytest.approx((click**2).mean(), rel=1e-3)
    end = round(seconds * RATE)
    assert not tail[end + 1 :].any() or tail[end + 1 :].max() < 1e-8
    half = len(tail[: end // 2]) // 2
    first, second = tail[:half].mean(), tail[half : 2 * half].mean()
    assert 10 * np.log10(first / second) == pytest.approx(15.0, abs=2.5)  # a quarter of 60


@pytest.mark.parametrize("severity", SEVERITIES)
def test_clipping_and_lost_segments(severity: int) -> None:
    clipped = np.asarray(sounds.clipping(SPEC, TONE, severity, generator(0, "c", "k")))
    limit = np.abs(TONE).max() * sounds.CLIP[severity - 1]
    np.testing.assert_allclose(clipped, np.clip(TONE, -limit, limit), atol=1e-6)
    wave = np.ones(400 * round(sounds.SEGMENT * RATE), np.float32)
    lost = np.asarray(sounds.dropout(SPEC, wave, severity, generator(0, "d", "k"))) == 0
    assert lost.mean() == pytest.approx(sounds.LOST[severity - 1], abs=0.08)
    segments = lost.reshape(400, -1)
    assert (segments.all(axis=1) | ~segments.any(axis=1)).all()


@pytest.mark.parametrize("shape", [(1,), (7,), (900,), (2, 900)])
def test_any_length_silence_and_channels(shape: tuple[int, ...]) -> None:
    for wave in (np.zeros(shape, np.float32), np.ones(shape, np.float32)):
        for act in CORRUPTIONS["audio"].values():
            made = np.asarray(act(SPEC, wave, 5, generator(0, "x", "k")))
            assert made.shape == shape
            assert made.dtype == np.float32
            assert np.isfinite(made).all()
