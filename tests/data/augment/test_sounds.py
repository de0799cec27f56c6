"""Augmentations of sounds and spectrograms: levels, ratios, shifts and masks as they are said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from outmodal.data.augment import Augment, Pipeline
from outmodal.data.augment.masks import spans
from outmodal.data.augment.spec_augment import SpecAugment
from outmodal.data.draws import Draw
from tests.data.augment.common import DRAW, applied, keys, made

Wave = NDArray[np.float32]
TIME = np.arange(800, dtype=np.float32)
SOUND: Wave = np.stack([np.sin(TIME / 9), 0.2 * np.cos(TIME / 5)])


def outputs(step: Augment, sound: Wave, count: int = 1000) -> Iterator[Wave]:
    pipeline = Pipeline([step])
    for i in range(count):
        before = sound.copy()
        value: Any = pipeline.sample(sound, f"{i}", DRAW)
        assert (sound == before).all(), "changed in place"
        assert value.shape == sound.shape
        assert value.dtype == np.float32
        yield value


def test_gain_is_even_in_decibel() -> None:
    found = []
    for out in outputs(made(name="gain", db=(-12, 3)), SOUND):
        ratio = out[:, 1:] / SOUND[:, 1:]
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-4)  # channels alike
        found.append(20 * np.log10(float(np.median(ratio))))
    assert stats.kstest((np.array(found) + 12) / 15, "uniform").pvalue > 1e-4


def test_noise_has_the_ratio_that_was_drawn() -> None:
    power, ratios = float(np.mean(SOUND**2)), []
    for out in outputs(made(name="noise", snr=(0, 20)), SOUND):
        noise = (out - SOUND).ravel().astype(np.float64)
        ratios.append(10 * np.log10(power / np.mean(noise**2)))
    assert stats.kstest(np.array(ratios) / 20, "uniform").statistic < 0.06
    assert stats.kstest(noise / noise.std(), "norm").pvalue > 1e-4
    silent = np.zeros((1, 50), np.float32)
    assert all((out == 0).all() for out in outputs(made(name="noise"), silent, 5))


@pytest.mark.parametrize("wrap", [False, True])
def test_shifts_are_even(wrap: bool) -> None:
    ramp: Wave = np.arange(1, 51, dtype=np.float32)[None]
    counts = np.zeros(21)
    for out in outputs(made(name="time_shift", share=0.2, wrap=wrap), ramp, 3000):
        shift = int(20 - np.flatnonzero(out[0] == 21)[0])
        expected = np.roll(ramp, -shift, 1)
        if not wrap:
            expected[:, 50 - shift :] = 0 if shift > 0 else expected[:, 50 - shift :]
            expected[:, : max(-shift, 0)] = 0
        assert (out == expected).all()
        counts[shift + 10] += 1
    assert stats.chisquare(counts).pvalue > 1e-4


def test_mask_widths_and_places_are_even() -> None:
    masks = spans(DRAW.uniforms(keys(4000), "m", 2), 30, 6)
    width = masks.sum(1)
    assert stats.chisquare(torch.bincount(width, minlength=7).numpy()).pvalue > 1e-4
    starts = masks.float().argmax(1)[width == 6]
    assert stats.chisquare(torch.bincount(starts, minlength=25).numpy()).pvalue > 1e-4
    runs = (masks[:, 1:] & ~masks[:, :-1]).sum(1) + masks[:, 0].long()
    assert runs.max() == 1
    assert spans(DRAW.uniforms(keys(500), "m", 2), 4, 99).sum(1).max() == 4
    assert not spans(DRAW.uniforms(keys(5), "m", 0), 4, 2).any()


def test_spec_augment() -> None:
    step = SpecAugment(freq_masks=1, freq_width=5, time_masks=1, time_width=50, time_share=0.2)
    x = torch.full((800, 2, 16, 40), 3.0)
    out = applied(step, x, keys(800))
    assert torch.equal(out[:, 0], out[:, 1])
    masked = out[:, 0] == 0.0
    rows, columns = masked.all(2).sum(1), masked.all(1).sum(1)
    assert rows.max() == 5
    assert columns.max() == 8  # a fifth of 40 frames binds before 50
    expected = masked.all(2)[:, :, None] | masked.all(1)[:, None, :]
    assert torch.equal(masked, expected)
    assert stats.chisquare(torch.bincount(rows, minlength=6).numpy()).pvalue > 1e-4
    value = applied(SpecAugment(value=-2.0, freq_masks=0), x, keys(800))
    assert set(value.ravel().tolist()) == {-2.0, 3.0}
    off = applied(step, x, keys(800), Draw(1, 2, "image", "none"))
    assert off is x
