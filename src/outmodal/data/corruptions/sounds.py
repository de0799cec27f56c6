"""Damage to sounds: noise, reverberation, clipping, lost segments."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from outmodal.data.manifest import Modality
from outmodal.data.transform import Value

Corruption = Callable[[Modality, Value, int, np.random.Generator], Value]
Wave = NDArray[np.float32]

SNR = (20.0, 15.0, 10.0, 5.0, 0.0)
"""Decibels of the sound above white noise."""
REVERBERATION = ((0.2, 10.0), (0.4, 6.0), (0.7, 3.0), (1.0, 0.0), (1.5, -3.0))
"""Seconds in which the tail falls by 60 dB, and decibels of the direct sound above the tail."""
CLIP = (0.5, 0.35, 0.25, 0.15, 0.08)
"""Where the sound is clipped, in parts of its largest amplitude."""
LOST = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Share of the segments that are silent."""
SEGMENT = 0.05
"""Seconds of a segment."""
RATE = 16_000
"""Samples a second of a data set that does not say it."""


def noise(spec: Modality, value: Value, severity: int, rng: np.random.Generator) -> Wave:
    """Add white noise."""
    wave = _wave(value)
    drawn = rng.standard_normal(wave.shape, dtype=np.float32)
    level = np.float32(_power(wave) ** 0.5 * 10.0 ** (-SNR[severity - 1] / 20))
    return wave + level * drawn


def reverberation(spec: Modality, value: Value, severity: int, rng: np.random.Generator) -> Wave:
    """Add a synthetic tail: white noise under an exponential decay, at the sound's own power.

    The room's answer is a direct impulse and noise whose level falls by 60 dB in the given time,
    the model of Moorer, "About this Reverberation Business" (Computer Music Journal, 1979).
    """
    wave, rate = _wave(value), spec.sample_rate or RATE
    seconds, direct = REVERBERATION[severity - 1]
    tail = max(1, round(seconds * rate))
    decay = 10.0 ** (-3.0 * np.arange(tail) / tail)
    answer = rng.standard_normal(tail) * decay
    answer *= 10.0 ** (-direct / 20) / np.sqrt(np.square(answer).sum())
    answer = np.concatenate([[1.0], answer])
    kernel = answer.reshape((1,) * (wave.ndim - 1) + (-1,))
    wet = fftconvolve(wave.astype(np.float64), kernel, axes=-1)[..., : wave.shape[-1]]
    wet *= (_power(wave) / max(_power(wet), 1e-12)) ** 0.5
    found: Wave = wet.astype(np.float32)
    return found


def clipping(spec: Modality, value: Value, severity: int, rng: np.random.Generator) -> Wave:
    """Clip at a part of the largest amplitude."""
    wave = _wave(value)
    limit = np.float32(np.abs(wave).max() * CLIP[severity - 1])
    clipped: Wave = np.clip(wave, -limit, limit)
    return clipped


def dropout(spec: Modality, value: Value, severity: int, rng: np.random.Generator) -> Wave:
    """Silence segments, each drawn for itself."""
    wave = _wave(value).copy()
    length = max(1, round(SEGMENT * (spec.sample_rate or RATE)))
    segment = np.arange(wave.shape[-1]) // length
    lost = rng.random(int(segment[-1]) + 1) < LOST[severity - 1]
    wave[..., lost[segment]] = 0.0
    return wave


def _wave(value: Value) -> Wave:
    return np.asarray(value, np.float32)


def _power(wave: NDArray[np.floating]) -> float:
    return float(np.mean(np.square(wave, dtype=np.float64)))


CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": noise,
    "reverberation": reverberation,
    "clipping": clipping,
    "dropout": dropout,
}
