"""The log-mel filterbank that ImageBind and LanguageBind read: Kaldi's, at 16 kHz.

Frames of 25 ms every 10 ms, only whole ones; each less its mean, pre-emphasised, under a
symmetric Hann window, zero-padded to 512 samples. Power spectrum, triangles in the mel domain
without area normalisation, natural logarithm. No dither, no energy.

All of it in float32, as upstream: in almost silent bands the rounding is what one hears.
"""

from __future__ import annotations

from functools import lru_cache
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

RATE = 16_000
FRAME = 400
HOP = 160
FFT = 512
LOWEST, HIGHEST = 20.0, 8000.0
EMPHASIS = 0.97
FLOOR = 1.1920929e-07
"""Least energy before the logarithm: the distance of 1 to the next float32."""

_BLOCK = 4096


def fbank(wave: NDArray[np.float32], mels: int) -> NDArray[np.float32]:
    """Return [frames, mels] for `wave` [T] at 16 kHz; no frames where T is less than 400."""
    if len(wave) < FRAME:
        return np.zeros((0, mels), np.float32)
    frames = torch.from_numpy(np.ascontiguousarray(wave)).unfold(0, FRAME, HOP)
    filters = mel_filters(mels).T
    energies = [_power(block) @ filters for block in torch.split(frames, _BLOCK)]
    logarithms: NDArray[np.float32] = torch.cat(energies).clamp(min=FLOOR).log().numpy()
    return logarithms


def _power(frames: Tensor) -> Tensor:
    """Return the power [n, 256] below the Nyquist frequency of frames [n, 400]."""
    centred = frames - frames.mean(1, keepdim=True)
    before = torch.cat([centred[:, :1], centred[:, :-1]], dim=1)
    window = torch.hann_window(FRAME, periodic=False)
    shaped = F.pad((centred - EMPHASIS * before) * window, (0, FFT - FRAME))
    spectrum: Tensor = torch.fft.rfft(shaped)
    return spectrum[:, :-1].abs().square()


@lru_cache(maxsize=8)
def mel_filters(mels: int) -> Tensor:
    """Return the triangles [mels, 256]: equally spaced in mel, of height 1, over FFT bins."""
    low, high = (1127.0 * log(1.0 + hertz / 700.0) for hertz in (LOWEST, HIGHEST))
    edges: Tensor = low + torch.arange(mels + 2)[:, None] * ((high - low) / (mels + 1))
    bins = 1127.0 * torch.log(1.0 + torch.arange(FFT // 2) * (RATE / FFT) / 700.0)
    rise: Tensor = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall: Tensor = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0.0)
