"""Inputs for audio: the waveform itself, or its log-mel spectrogram."""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.signal import resample_poly
from torch import Tensor

from outmodal.data.augment import Form, Pipeline
from outmodal.data.decode import DecodeError, decode, decode_channels
from outmodal.data.draws import drawing
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.mel import LogMel
from outmodal.data.noise import Noise, NoiseConfig, build_noise
from outmodal.data.transform import BaseInput, Transform, Value, array, as_tensor, write_json
from outmodal.data.windows import Place, check_windows, windows

if TYPE_CHECKING:
    from outmodal.data.draws import Draw

Wave = NDArray[np.float32]


class ClipInput(BaseInput):
    """Base of the audio inputs: clips of one length at one rate.

    Several clips add an axis before all others.

    Attributes:
        seconds: Length of a clip. Shorter audio is padded with silence at its end, longer audio
            loses what lies outside of the clip; with noise, shorter audio lies at a random offset
            instead.
        sample_rate: Rate in Hz; audio stored at another rate is resampled.
        channels: 1 is the mean of the channels; more keeps them, and files must have as many.
        window: Where in longer audio clips lie, see `outmodal.data.windows`. "random" draws anew
            for every sound and epoch of training.
        clips: Clips; "start" has one.
        noise: Noise to add, or None.
    """

    kinds: ClassVar[tuple[str, ...]] = ("audio",)
    forms: ClassVar[tuple[Form, ...]] = ("wave",)
    seconds: float = Field(default=1.0, gt=0)
    sample_rate: int = Field(default=8000, gt=0)
    channels: int = Field(default=1, gt=0)
    window: Place = "start"
    clips: int = Field(default=1, gt=0)
    noise: NoiseConfig | None = None

    @model_validator(mode="after")
    def _check_clips(self) -> Self:
        check_windows(self.window, self.clips)
        if self.noise is not None and self.channels > 1:
            raise ValueError("noise is for one channel: set channels to 1, or leave out noise")
        return self

    @property
    def lead(self) -> tuple[int, ...]:
        """The axis of the clips, where there are several."""
        return (self.clips,) if self.clips > 1 else ()

    @property
    def samples(self) -> int:
        """Samples in a clip."""
        return round(self.seconds * self.sample_rate)

    def clipper(self, dataset: Dataset | None, modality: str) -> Clipper:
        """Make the part that brings audio to the clip's rate and length."""
        spec = self.spec(dataset, modality)
        stored = spec.sample_rate if spec is not None else None
        noise = None if self.noise is None else build_noise(self.noise, dataset, modality)
        return Clipper(self, stored or self.sample_rate, noise)


class Clipper:
    """Brings decoded audio to one rate and length, with noise and augmentation if asked for.

    Attributes:
        stored_rate: Rate in Hz of the audio that it is given.
        pipeline: The input's augmentations.
        random: Whether something differs from epoch to epoch.
    """

    def __init__(self, config: ClipInput, stored_rate: int, noise: Noise | None) -> None:
        self.up, self.down = _ratio(stored_rate, config.sample_rate)
        self.stored_rate = stored_rate
        self.config = config
        self.noise = noise
        self.pipeline = Pipeline(config.augment, config.strong)
        self.random = self.pipeline.random or config.window == "random"

    def decode(self, spec: Modality, data: bytes) -> Value:
        """Decode a file at the stored rate: [T], or [channels, T] where several are kept."""
        if self.config.channels > 1:
            sound, rate = decode_channels(data)
            up, down = _ratio(rate, self.stored_rate)
            return sound if up == down else _resample(sound, up, down)
        # of several sources, one may be stored at another rate than the rest
        return decode(spec.model_copy(update={"sample_rate": self.stored_rate}), data)

    def __call__(self, value: Value, key: str, draw: Draw | None = None) -> Wave:
        """Return [clips, channels, samples] float32.

        Raises DecodeError where `value` is not [T], or [channels, T] of several.
        """
        s = self.config
        sound = array(value, 1 if s.channels == 1 else 2).astype(np.float32, copy=False)
        sound = np.atleast_2d(sound)
        if len(sound) != s.channels:
            raise DecodeError(f"expected {s.channels} channels, got {len(sound)}")
        if self.up != self.down:
            sound = _resample(sound, self.up, self.down)
        clips = np.stack([self._clip(part, key) for part in self._parts(sound, key, draw)])
        return self.pipeline.sample(clips, key, draw)

    def _parts(self, sound: Wave, key: str, draw: Draw | None) -> list[Wave]:
        """Return what lies in each window, at most as long as a clip."""
        s = self.config
        generator = draw.generator(key, "window") if drawing(draw) else None
        found = windows(sound.shape[1], s.samples, s.clips, s.window, generator)
        return [sound[:, int(start) : int(start) + s.samples] for start, _ in found]

    def _clip(self, part: Wave, key: str) -> Wave:
        """Return [channels, samples] of at most as many."""
        samples = self.config.samples
        if self.noise is not None:
            return self.noise(part[0], samples, key)[None]
        clip = np.zeros((len(part), samples), np.float32)
        clip[:, : part.shape[1]] = part
        return clip


def _ratio(old: int, new: int) -> tuple[int, int]:
    """Return the smallest whole factors that lead from one rate to another: up, down."""
    common = gcd(old, new)
    return new // common, old // common


def _resample(sound: Wave, up: int, down: int) -> Wave:
    resampled: Wave = resample_poly(sound, up, down, axis=-1).astype(np.float32)
    return resampled


class ClipTransform(Transform):
    """Base of the audio transforms: what they do to a member before it is a feature."""

    def __init__(self, config: ClipInput, clip: Clipper) -> None:
        super().__init__(config, config.shape)
        self.clip = clip
        self.random = clip.random

    def decode(self, spec: Modality, data: bytes) -> Value:
        return self.clip.decode(spec, data)

    def __call__(self, value: Value, key: str) -> Tensor:
        return self.compact(value, key)


class WaveformInput(ClipInput):
    """The waveform [samples], as wav2vec2 reads it, or [channels, samples] of several.

    Attributes:
        normalize: Bring each clip to zero mean and unit variance, its channels together.
    """

    name: Literal["waveform"] = "waveform"
    normalize: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        channels = (self.channels,) if self.channels > 1 else ()
        return (*self.lead, *channels, self.samples)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        return WaveformTransform(self, self.clipper(dataset, modality))


class WaveformTransform(ClipTransform):
    """Clips to [samples] float32; saved as Wav2Vec2FeatureExtractor.

    Equal to that extractor with padding="max_length", max_length=samples and truncation=True.
    """

    def __init__(self, config: WaveformInput, clip: Clipper) -> None:
        super().__init__(config, clip)
        self.normalize = config.normalize
        self.rate = config.sample_rate

    def compact(self, value: Value, key: str, draw: Draw | None = None) -> Tensor:
        waves = self.clip(value, key, draw)
        if self.normalize:
            waves = np.stack([(w - w.mean()) / np.sqrt(w.var() + 1e-7) for w in waves])
        return as_tensor(waves.reshape(self.shape))

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

    Several channels are [channels, n_mels, frames].

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

    forms: ClassVar[tuple[Form, ...]] = ("wave", "spectrogram")
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
        if self.bands == "channels" and self.channels > 1:
            raise ValueError("bands as channels need one audio channel: set channels to 1")
        if self.samples <= self.n_fft // 2:
            raise ValueError(
                f"a clip of {self.samples} samples is too short for n_fft {self.n_fft}"
            )
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        frames = 1 + (self.samples - self.n_fft % 2) // self.hop
        if self.bands == "channels":
            return (*self.lead, self.n_mels, 1, frames)
        return (*self.lead, self.channels, self.n_mels, frames)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        return LogMelTransform(self, self.clipper(dataset, modality))


class LogMelTransform(ClipTransform):
    """Clips to the configured shape, float32; saved as ClapFeatureExtractor."""

    def __init__(self, config: LogMelInput, clip: Clipper) -> None:
        super().__init__(config, clip)
        self.settings = config
        self.mel = LogMel(
            config.sample_rate,
            config.n_mels,
            config.n_fft,
            config.hop,
            config.f_min,
            config.f_max,
        )

    def compact(self, value: Value, key: str, draw: Draw | None = None) -> Tensor:
        clips = [self._features(clip) for clip in self.clip(value, key, draw)]
        return as_tensor(np.stack(clips)).reshape(self.shape)

    def _features(self, clip: Wave) -> Wave:
        """Return [channels, n_mels, frames] of [channels, samples]."""
        decibel = np.stack([self.mel(channel) for channel in clip])
        mean, std = np.float32(self.settings.mean), np.float32(self.settings.std)
        if self.settings.per_clip:
            mean, std = decibel.mean(), np.maximum(decibel.std(), np.float32(1e-3))
        normal: Wave = (decibel - mean) / std
        return normal

    def blank(self, raw: bool = False) -> Tensor:
        if not raw:
            return super().blank()
        s = self.settings  # silence, without the noise that recordings are given
        silent = self._features(np.zeros((s.channels, s.samples), np.float32))
        return as_tensor(np.stack([silent] * s.clips)).reshape(self.shape)

    def finish(self, x: Tensor, keys: Tensor, draw: Draw | None = None) -> Tensor:
        """Mask bands and stretches of time, in all clips and channels alike."""
        s = self.settings
        flat = x.view(len(x), -1, s.n_mels, x.shape[-1])
        return self.clip.pipeline.batch(flat, keys, draw).view(x.shape)

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
