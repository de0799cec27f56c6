"""The log-mel spectrogram that transformers' ClapFeatureExtractor computes, made fast."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FLOOR = 1e-10


class LogMel:
    """Power spectrogram in dB over Slaney mel bands.

    The same numbers as `transformers.audio_utils.spectrogram(power=2, log_mel="dB")` with a
    periodic Hann window, centred frames and reflected edges: ClapFeatureExtractor's features
    where its truncation is "rand_trunc".
    """

    def __init__(
        self, sample_rate: int, n_mels: int, n_fft: int, hop: int, f_min: float, f_max: float
    ) -> None:
        self.n_fft = n_fft
        self.hop = hop
        self.window = np.hanning(n_fft + 1)[:-1]
        self.bands = mel_bands(sample_rate, n_mels, n_fft, f_min, f_max)

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return [n_mels, 1 + len(wave) // hop] float32 dB, at least -100."""
        half = self.n_fft // 2
        padded = np.pad(wave.astype(np.float64), half, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)[:: self.hop]
        # transformers rounds the spectrum to complex64 as well; double precision before that keeps
        # quiet bands beside loud ones within a thousandth of a dB of it.
        spectrum = np.fft.rfft(frames * self.window).astype(np.complex64)
        power = spectrum.real.astype(np.float64) ** 2 + spectrum.imag.astype(np.float64) ** 2
        bands = np.maximum(FLOOR, self.bands @ power.T)
        decibel: NDArray[np.float32] = (10.0 * np.log10(bands)).astype(np.float32)
        return decibel


def mel_bands(sample_rate: int, n_mels: int, n_fft: int, f_min: float, f_max: float) -> Floats:
    """Return [n_mels, n_fft // 2 + 1] triangular filters of equal area (Slaney's Auditory Toolbox).

    Equal to librosa.filters.mel and transformers' mel_filter_bank with norm and scale "slaney".
    """
    edges = _to_hertz(np.linspace(_to_mel(f_min), _to_mel(f_max), n_mels + 2))
    bins = np.linspace(0.0, sample_rate // 2, n_fft // 2 + 1)
    slopes = edges[:, None] - bins[None, :]
    widths = np.diff(edges)[:, None]
    rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    bands: Floats = triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return bands


# Slaney's scale: linear below 1 kHz (15 mels), 27 mels for each factor of 6.4 above.
_KNEE_HZ, _KNEE_MEL, _LOG_STEP = 1000.0, 15.0, 27.0 / float(np.log(6.4))


def _to_mel(hertz: float) -> float:
    if hertz < _KNEE_HZ:
        return 3.0 * hertz / 200.0
    return _KNEE_MEL + _LOG_STEP * float(np.log(hertz / _KNEE_HZ))


def _to_hertz(mels: Floats) -> Floats:
    low = 200.0 * mels / 3.0
    high = _KNEE_HZ * np.exp((mels - _KNEE_MEL) / _LOG_STEP)
    hertz: Floats = np.where(mels < _KNEE_MEL, low, high)
    return hertz
