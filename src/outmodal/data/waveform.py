"""Inputs for audio: the waveform itself, or its log-mel spectrogram."""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.signal import resample_poly
from torch import Tensor

from outmodal.data.manifest import Dataset
from outmodal.data.mel import LogMel
from outmodal.data.noise import Noise, NoiseConfig, build_noise
from outmodal.data.transform import BaseInput, Transform, Value, array, as_tensor, write_json

Wave = NDArray[np.float32]


class ClipInput(BaseInput):
    """Base of the audio inputs: clips of one length at one rate.

    Attributes:
        seconds: Length of a clip. Shorter audio is padded with silence at its end, longer audio
            loses its end; with noise, shorter audio lies at a random offset instead.
        sample_rate: Rate in Hz; audio stored at another rate is resampled.
        noise: Noise to add, or None.
    """

    kinds: ClassVar[tuple[str, ...]] = ("audio",)
    seconds: float = Field(default=1.0, gt=0)
    sample_rate: int = Field(default=8000, gt=0)
    noise: NoiseConfig | None = None

    @property
    def samples(self) -> int:
        """Samples in a clip."""
        return round(self.seconds * self.sample_rate)

    def clipper(self, dataset: Dataset | None, modality: str) -> Clipper:
        """Make the part that brings audio to the clip's rate and length."""
        spec = self.spec(dataset, modality)
        stored = spec.sample_rate if spec is not None else None
        noise = None if self.noise is None else build_noise(self.noise, dataset, modality)
        return Clipper(stored or self.sample_rate, self.sample_rate, self.samples, noise)


class Clipper:
    """Brings decoded audio to one rate and length, with noise where it is asked for."""

    def __init__(self, stored_rate: int, rate: int, samples: int, noise: Noise | None) -> None:
        common = gcd(stored_rate, rate)
        self.up, self.down = rate // common, stored_rate // common
        self.samples = samples
        self.noise = noise

    def __call__(self, value: Value, key: str) -> Wave:
        """Return [samples] float32. Raises DecodeError where `value` is not one channel."""
        wave: Wave = array(value, 1).astype(np.float32, copy=False)
        if self.up != self.down:
            wave = resample_poly(wave, self.up, self.down).astype(np.float32)
        if self.noise is not None:
            return self.noise(wave, self.samples, key)
        clip = np.zeros(self.samples, np.float32)
        clip[: len(wave)] = wave[: self.samples]
        return clip


class WaveformInput(ClipInput):
    """The waveform [samples], as wav2vec2 reads it.

    Attributes:
        normalize: Bring each clip to zero mean and unit variance.
    """

    name: Literal["waveform"] = "waveform"
    normalize: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.samples,)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        return WaveformTransform(self, self.clipper(dataset, modality))


class WaveformTransform(Transform):
    """Clips to [samples] float32; saved as Wav2Vec2FeatureExtractor.

    Equal to that extractor with padding="max_length", max_length=samples and truncation=True.
    """

    def __init__(self, config: WaveformInput, clip: Clipper) -> None:
        super().__init__(config, config.shape)
        self.clip = clip
        self.normalize = config.normalize
        self.rate = config.sample_rate

    def __call__(self, value: Value, key: str) -> Tensor:
        wave = self.clip(value, key)
        if self.normalize:
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        return as_tensor(wave)

    def save(self, folder: Path) -> None:
        super().save(folder)
        content = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": self.rate,
            "padding_side": "right",
            "padding_value": 0.0,
            "do_normalize": self.normalize,
            "return_attention_mask": False,
        }
        write_json(folder / "preprocessor_config.json", content)


class LogMelInput(ClipInput):
    """The log-mel spectrogram [1, n_mels, frames] in dB, shifted by `mean` and divided by `std`.

    The dB values are those of transformers' ClapFeatureExtractor, which gives [1, frames, n_mels]
    and does not normalise: `(x.mT - mean) / std` of its output is this input, transposed once
    more to [n_mels, 1, frames] where `bands` is "channels".

    Attributes:
        bands: Where the mel bands lie: along the height of a one-channel picture, or as the
            channels of a picture of height 1, for convolutions over time alone.
        n_mels: Mel bands.
        n_fft: Samples in a window.
        hop: Samples between frames.
        f_min, f_max: Lowest and highest frequency in Hz.
        mean, std: dB to subtract, and to divide by.
        per_clip: Use each clip's own mean and deviation instead, so that its level is not seen.
    """

    name: Literal["log_mel"] = "log_mel"
    bands: Literal["height", "channels"] = "height"
    n_mels: int = Field(default=40, gt=0)
    n_fft: int = Field(default=400, gt=1)
    hop: int = Field(default=160, gt=0)
    f_min: float = Field(default=50.0, ge=0)
    f_max: float = Field(default=4000.0, gt=0)
    mean: float = -26.0
    std: float = Field(default=11.0, gt=0)
    per_clip: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(
                f"expected f_min < f_max <= sample_rate / 2, got f_min {self.f_min}, "
                f"f_max {self.f_max}, sample_rate {self.sample_rate}"
            )
        if self.samples <= self.n_fft // 2:
            raise ValueError(
                f"a clip of {self.samples} samples is too short for n_fft {self.n_fft}"
            )
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        frames = 1 + (self.samples - self.n_fft % 2) // self.hop
        if self.bands == "channels":
            return (self.n_mels, 1, frames)
        return (1, self.n_mels, frames)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        return LogMelTransform(self, self.clipper(dataset, modality))


class LogMelTransform(Transform):
    """Clips to the configured shape, float32; saved as ClapFeatureExtractor."""

    def __init__(self, config: LogMelInput, clip: Clipper) -> None:
        super().__init__(config, config.shape)
        self.settings = config
        self.clip = clip
        self.mel = LogMel(
            config.sample_rate,
            config.n_mels,
            config.n_fft,
            config.hop,
            config.f_min,
            config.f_max,
        )

    def __call__(self, value: Value, key: str) -> Tensor:
        decibel = self.mel(self.clip(value, key))
        mean, std = np.float32(self.settings.mean), np.float32(self.settings.std)
        if self.settings.per_clip:
            mean, std = decibel.mean(), np.maximum(decibel.std(), np.float32(1e-3))
        normal = (decibel - mean) / std
        return as_tensor(normal).reshape(self.shape)

    def save(self, folder: Path) -> None:
        super().save(folder)
        s = self.settings
        whole = float(s.seconds).is_integer()
        content = {
            "feature_extractor_type": "ClapFeatureExtractor",
            "feature_size": s.n_mels,
            "sampling_rate": s.sample_rate,
            "hop_length": s.hop,
            "fft_window_size": s.n_fft,
            "frequency_min": s.f_min,
            "frequency_max": s.f_max,
            # an integer where it can be: ClapFeatureExtractor slices with seconds * rate
            "max_length_s": int(s.seconds) if whole else s.seconds,
            "padding": "pad",
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "top_db": None,
            "truncation": "rand_trunc",
        }
        write_json(folder / "preprocessor_config.json", content)
