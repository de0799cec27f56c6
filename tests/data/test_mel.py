"""The log-mel spectrogram equals that of transformers, which exports promise."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import ClapFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from outmodal.data.mel import LogMel, mel_bands

SETTINGS = [
    (8000, 40, 400, 160, 50.0, 4000.0),
    (16000, 64, 512, 160, 0.0, 8000.0),
    (8000, 20, 256, 128, 300.0, 3000.0),
    (48000, 64, 1024, 480, 50.0, 14000.0),
    (8000, 32, 401, 160, 50.0, 4000.0),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_bands_equal_those_of_transformers(
    settings: tuple[int, int, int, int, float, float],
) -> None:
    rate, n_mels, n_fft, _, low, high = settings
    theirs = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=n_mels,
        min_frequency=low,
        max_frequency=high,
        sampling_rate=rate,
        norm="slaney",
        mel_scale="slaney",
    )
    np.testing.assert_allclose(mel_bands(rate, n_mels, n_fft, low, high), theirs.T, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("level", [1.0, 1e-3, 0.0])
def test_equals_clap_feature_extractor(
    settings: tuple[int, int, int, int, float, float], level: float
) -> None:
    rate, n_mels, n_fft, hop, low, high = settings
    rng = np.random.default_rng(1)
    tone = np.sin(np.arange(rate) * 0.5)
    wave = (level * (tone + 1e-4 * rng.standard_normal(rate))).astype(np.float32)
    clap = ClapFeatureExtractor(
        feature_size=n_mels,
        sampling_rate=rate,
        hop_length=hop,
        max_length_s=1,
        fft_window_size=n_fft,
        frequency_min=low,
        frequency_max=high,
        truncation="rand_trunc",
        padding="pad",
    )
    theirs = clap(wave, sampling_rate=rate, return_tensors="np")["input_features"][0, 0]
    ours = LogMel(*settings)(wave)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.T, atol=1e-3, rtol=0)


def test_louder_by_ten_is_twenty_decibels() -> None:
    mel = LogMel(8000, 40, 400, 160, 50.0, 4000.0)
    wave = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    np.testing.assert_allclose(mel(10 * wave) - mel(wave), 20.0, atol=1e-3)
    assert mel(np.zeros(8000, np.float32)).max() == -100.0
