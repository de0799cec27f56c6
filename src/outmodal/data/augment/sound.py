"""Augmentations of waveforms, before they are normalised or become spectrograms."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from outmodal.data.augment.base import Augment, Form, Range, Stage, Value

Sound = NDArray[np.float32]


class _SoundAugment(Augment):
    """Base: changes [..., T] float32, all channels alike."""

    kinds: ClassVar[tuple[str, ...]] = ("audio",)
    stage: ClassVar[Stage] = "sample"
    form: ClassVar[Form] = "wave"

    def sample(self, value: Value, generator: np.random.Generator) -> Value:
        sound: NDArray[Any] = np.asarray(value, np.float32)
        return self.change(sound, generator)

    def change(self, sound: Sound, generator: np.random.Generator) -> Sound:
        """Return the changed sound, of the same shape."""
        raise NotImplementedError


class Gain(_SoundAugment):
    """Louder or softer by an even draw in decibel.

    Attributes:
        db: Lowest and highest gain in dB.
    """

    name: Literal["gain"] = "gain"
    db: Range = (-6.0, 6.0)

    def change(self, sound: Sound, generator: np.random.Generator) -> Sound:
        return sound * np.float32(10.0 ** (generator.uniform(*self.db) / 20.0))


class SoundNoise(_SoundAugment):
    """White Gaussian noise at an even draw of the signal-to-noise ratio; silence stays silent.

    Attributes:
        snr: Lowest and highest ratio in dB, relative to the mean power of the clip.
    """

    name: Literal["noise"] = "noise"
    snr: Range = (10.0, 30.0)

    def change(self, sound: Sound, generator: np.random.Generator) -> Sound:
        ratio = 10.0 ** (generator.uniform(*self.snr) / 10.0)
        deviation = np.sqrt(np.mean(np.square(sound, dtype=np.float64)) / ratio)
        noise = generator.standard_normal(sound.shape, dtype=np.float32)
        return sound + np.float32(deviation) * noise


class TimeShift(_SoundAugment):
    """Earlier or later by an even draw.

    Attributes:
        share: Largest shift in either direction, as a share of the clip's length.
        wrap: Whether what leaves at one end enters at the other; else there is silence.
    """

    name: Literal["time_shift"] = "time_shift"
    share: float = Field(default=0.1, gt=0.0, le=1.0)
    wrap: bool = False

    def change(self, sound: Sound, generator: np.random.Generator) -> Sound:
        length = sound.shape[-1]
        most = int(self.share * length)
        shift = int(generator.integers(-most, most + 1))
        moved = np.roll(sound, shift, axis=-1)
        if not self.wrap and shift > 0:
            moved[..., :shift] = 0.0
        elif not self.wrap and shift < 0:
            moved[..., shift:] = 0.0
        return moved
