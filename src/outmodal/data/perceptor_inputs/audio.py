"""Sounds of perceptors: log-mel filterbanks, in clips spread over the sound or of the whole."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from outmodal.data.decode import DecodeError, decode_channels
from outmodal.data.fbank import FRAME, RATE, fbank
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.notice import Notice
from outmodal.data.resample import resample
from outmodal.data.transform import BaseInput, Transform, Value, as_tensor
from outmodal.data.windows import spread_windows

if TYPE_CHECKING:
    from outmodal.data.draws import Draw

Sound = NDArray[np.float32]


class FbankInput(BaseInput):
    """Log-mel filterbanks [clips, 1, mels, frames]; or, without clips, [3, mels, frames].

    Sounds are resampled to 16 kHz. The first channel is read, as upstream does. Without clips,
    a sound of fewer frames is repeated from its start, in all three channels; a longer one is
    divided into three parts of equal length, and each channel begins in one of them.

    Attributes:
        clips: Windows of `clip_seconds` at even distances, the first at the start and the last
            at the end; what is short of `frames` is filled with zeros. 0 reads the whole sound.
        clip_seconds: Length of a window. A shorter sound gives the same window for every clip.
        mels: Bands.
        frames: Frames of 10 ms.
        start: Where in its part each channel of a longer sound begins. Upstream draws it.
        carry_offset: Subtract the mean of each clip from the samples that it shares with the
            next, as upstream does by mistake: with a constant offset, the next clip has a step.
        rate: Rate in Hz of sounds that come decoded, from a data set that does not say it.
        mean, std: Logarithm to subtract, and to divide by.
    """

    kinds: ClassVar[tuple[str, ...]] = ("audio",)
    name: Literal["fbank"] = "fbank"
    clips: int = Field(default=0, ge=0)
    clip_seconds: float = Field(default=2.0, gt=0)
    mels: int = Field(default=128, gt=0)
    frames: int = Field(default=1036, gt=0)
    start: Literal["first", "middle"] = "middle"
    carry_offset: bool = False
    rate: int = Field(default=RATE, gt=0)
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)

    @property
    def shape(self) -> tuple[int, ...]:
        lead = (self.clips, 1) if self.clips else (3,)
        return (*lead, self.mels, self.frames)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        spec = self.spec(dataset, modality)
        rate = (spec.sample_rate if spec is not None else None) or self.rate
        return Fbank(self, rate, modality)


class Fbank(Transform):
    """Sounds [T], or [channels, T], to float32 of the input's shape.

    From a file it resamples once, from the rate that the file says.

    Attributes:
        resampled: Counts the sounds that were at another rate than 16 kHz.
    """

    def __init__(self, config: FbankInput, rate: int, modality: str) -> None:
        super().__init__(config, config.shape)
        self.settings = config
        self.rate = rate
        self.modality = modality
        self.resampled = Notice()
        if rate != RATE:
            self.resampled.say(self._resampling(rate))

    def __call__(self, value: Value, key: str) -> Tensor:
        if isinstance(value, str) or value.ndim not in (1, 2) or not value.size:
            raise DecodeError("expected sound [T] or [channels, T]")
        return self._banks(np.atleast_2d(value).astype(np.float32, copy=False), self.rate)

    def from_bytes(self, spec: Modality, data: bytes, key: str, draw: Draw | None = None) -> Tensor:
        sound, rate = decode_channels(data)
        return self._banks(sound, rate)

    def _banks(self, sound: Sound, rate: int) -> Tensor:
        s = self.settings
        kept = sound if s.carry_offset else sound[:1]
        if rate != RATE:
            self.resampled.add(self._resampling(rate))
            kept = np.stack([resample(channel, rate, RATE) for channel in kept])
        if kept.shape[1] < FRAME:
            raise DecodeError(f"{kept.shape[1]} samples at {RATE} Hz are less than one frame")
        mels = self._clips(kept) if s.clips else self._whole(kept[0])
        normal = (mels - np.float32(s.mean)) / np.float32(s.std)
        return as_tensor(normal.reshape(self.shape))

    def _clips(self, sound: Sound) -> Sound:
        """Return [clips, mels, frames] of [channels, T], zeros where a clip is too short."""
        s = self.settings
        sound = sound.copy()  # carry_offset changes it
        out = np.zeros((s.clips, s.mels, s.frames), np.float32)
        windows = spread_windows(Fraction(sound.shape[1], RATE), s.clip_seconds, s.clips)
        for row, (start, stop) in zip(out, windows, strict=True):
            clip = sound[:, int(start * RATE) : int(stop * RATE)]
            offset = clip.mean()
            if s.carry_offset:
                clip -= offset
            else:
                clip = clip - offset
            mels = fbank(clip[0], s.mels)[: s.frames]
            row[:, : len(mels)] = mels.T
        return out

    def _whole(self, sound: Sound) -> Sound:
        """Return [3, mels, frames] of [T]."""
        s = self.settings
        mels = fbank(sound - sound.mean(), s.mels)
        if len(mels) <= s.frames:
            once = np.resize(mels, (s.frames, s.mels))  # repeats from the start
            return np.stack([once.T] * 3)
        return np.stack([mels[i : i + s.frames].T for i in self.starts(len(mels))])

    def starts(self, frames: int) -> list[int]:
        """Return the first frame of each channel of a sound longer than the input."""
        parts = np.array_split(np.arange(frames - self.settings.frames + 1), 3)
        at = {"first": 0, "middle": 0.5}[self.settings.start]
        return [int(part[int((len(part) - 1) * at)]) if len(part) else 0 for part in parts]

    def _resampling(self, rate: int) -> str:
        return f"sound of '{self.modality}' at {rate} Hz is resampled to {RATE} Hz"
