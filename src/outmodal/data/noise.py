"""Noise added to clean speech when it is read: a pure function of the sample's key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from outmodal.base import Config
from outmodal.data.manifest import Dataset
from outmodal.data.transform import fit_values

Wave = NDArray[np.float32]
Kind = Literal["white", "pink", "babble"]
BABBLE_VOICES = 6


def _ordered(snr: tuple[float, float]) -> tuple[float, float]:
    if snr[0] > snr[1]:
        raise ValueError(f"lowest ratio first, got {snr[0]} > {snr[1]}")
    return snr


class NoiseConfig(Config):
    """Noise over clean utterances: offset, kind, ratio and level differ from key to key.

    Attributes:
        snr: Lowest and highest signal-to-noise ratio in dB, relative to the speech alone.
        kinds: Kinds to choose from. Babble mixes other utterances of the data set.
        seed: Another seed gives other noise for every key.
        pool: Utterances of the first training shard that babble is mixed from.
    """

    snr: Annotated[tuple[float, float], AfterValidator(_ordered)] = (3.0, 20.0)
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("white", "pink", "babble")
    seed: int = Field(default=0, ge=0)
    pool: int = Field(default=64, ge=1)


class Noise:
    """Places an utterance in a clip and adds noise. Picklable; holds the babble pool."""

    def __init__(self, config: NoiseConfig, pool: Sequence[Wave] = ()) -> None:
        """Keep the utterances of `pool` that have power; without any, babble is not drawn."""
        self.config = config
        self.pool = [_unit_power(w) for w in pool if w.size and float(np.mean(w**2)) > 0.0]
        self.kinds = tuple(k for k in config.kinds if k != "babble" or self.pool) or ("white",)

    def __call__(self, clean: Wave, clip: int, key: str) -> Wave:
        """Return a noisy clip of `clip` samples with `clean` at a random offset.

        An utterance longer than the clip is cut at its end. The peak of the result lies between
        -12 and 0 dB of 0.9, so that the level says nothing.
        """
        rng = np.random.default_rng(key_words(self.config.seed, key))
        speech = clean[:clip]
        offset = int(rng.integers(0, clip - len(speech) + 1))
        noise = self._draw(rng, clip)
        ratio = 10.0 ** (rng.uniform(*self.config.snr) / 10.0)
        power = float(np.mean(speech**2)) + 1e-9
        noise *= np.float32(np.sqrt(power / (float(np.mean(noise**2)) + 1e-9) / ratio))
        noise[offset : offset + len(speech)] += speech
        level = 0.9 * 10.0 ** (rng.uniform(-12.0, 0.0) / 20.0)
        noise *= np.float32(level / (float(np.abs(noise).max()) + 1e-9))
        return noise

    def _draw(self, rng: np.random.Generator, clip: int) -> Wave:
        """Return noise of any power."""
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        if kind == "babble":
            return self._babble(rng, clip)
        white = rng.standard_normal(clip, dtype=np.float32)
        return white if kind == "white" else _pink(white)

    def _babble(self, rng: np.random.Generator, clip: int) -> Wave:
        """Sum a few utterances of the pool, repeated to the clip's length and rotated."""
        total = np.zeros(clip, np.float32)
        for voice in rng.integers(0, len(self.pool), BABBLE_VOICES):
            total += np.roll(np.resize(self.pool[voice], clip), int(rng.integers(clip)))
        return total


def build_noise(config: NoiseConfig, dataset: Dataset | None, modality: str) -> Noise:
    """Make the noise of a modality, its babble pool from the first training shard.

    Without a data set there is no pool, and only the other kinds are drawn.
    """
    if dataset is None or "babble" not in config.kinds:
        return Noise(config)
    values = fit_values(dataset, modality, config.pool, shards=1)
    return Noise(config, [np.asarray(v, np.float32) for _, v in values])


def key_words(seed: int, key: str) -> list[int]:
    """Return the seed words of a key: `seed` and the key's SHA-256, the same on every machine.

    >>> key_words(3, "a")[:2]
    [3, 310482890]
    """
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    return [seed, *np.frombuffer(digest, dtype="<u4").tolist()]


def _unit_power(wave: Wave) -> Wave:
    scaled: Wave = (wave / (np.sqrt(np.mean(wave**2)) + 1e-6)).astype(np.float32)
    return scaled


def _pink(white: Wave) -> Wave:
    """Colour white noise so that its power falls with 1/f."""
    spectrum = np.fft.rfft(white)
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0.0
    return np.fft.irfft(spectrum, len(white)).astype(np.float32)
