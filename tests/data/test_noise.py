"""Noise is a pure function of the key, with the ratio it was asked for."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from outmodal.data.noise import Kind, Noise, NoiseConfig, build_noise, key_words
from tests.data.tiny import make_tiny

CLIP = 8000
SPEECH = np.sin(np.arange(3000) * 0.3).astype(np.float32) * 0.2
POOL = [np.sin(np.arange(2000 + 100 * i) * 0.05 * (i + 1)).astype(np.float32) for i in range(8)]


def test_same_key_gives_the_same_clip_in_any_order() -> None:
    first, second = Noise(NoiseConfig(), POOL), Noise(NoiseConfig(), POOL)
    keys = [f"train-{i}" for i in range(20)]
    forward = {k: first(SPEECH, CLIP, k) for k in keys}
    backward = {k: second(SPEECH, CLIP, k) for k in reversed(keys)}
    for key in keys:
        np.testing.assert_array_equal(forward[key], backward[key])
    assert len({forward[k].tobytes() for k in keys}) == len(keys)


def test_known_key_words() -> None:
    # sha256("a") starts ca 97 81 12: a change here would change every noisy data set
    assert key_words(7, "a")[:2] == [7, 0x128197CA]
    assert len(key_words(7, "a")) == 9


def test_seed_changes_the_noise() -> None:
    one = Noise(NoiseConfig(seed=0), POOL)(SPEECH, CLIP, "k")
    two = Noise(NoiseConfig(seed=1), POOL)(SPEECH, CLIP, "k")
    assert not np.array_equal(one, two)


def test_survives_pickling_and_leaves_its_input_alone() -> None:
    noise = Noise(NoiseConfig(), POOL)
    before = SPEECH.copy()
    copy: Noise = pickle.loads(pickle.dumps(noise))  # noqa: S301
    np.testing.assert_array_equal(noise(SPEECH, CLIP, "k"), copy(SPEECH, CLIP, "k"))
    np.testing.assert_array_equal(SPEECH, before)


def split(noisy: np.ndarray, speech: np.ndarray) -> tuple[float, float]:
    """Find the speech by correlation; return its ratio to the rest in dB, and the peak."""
    best = int(np.argmax(np.correlate(noisy, speech, mode="valid")))
    part = noisy[best : best + len(speech)]
    gain = float(part @ speech / (speech @ speech))
    rest = noisy.copy()
    rest[best : best + len(speech)] -= gain * speech
    power = gain**2 * float(np.mean(speech**2))
    return 10 * np.log10(power / float(np.mean(rest**2))), float(np.abs(noisy).max())


@pytest.mark.parametrize("kind", ["white", "pink", "babble"])
@pytest.mark.parametrize("ratio", [10.0, 20.0])
def test_ratio_and_level(kind: Kind, ratio: float) -> None:
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(3000).astype(np.float32) * 0.1
    noise = Noise(NoiseConfig(snr=(ratio, ratio), kinds=(kind,)), POOL)
    for i in range(5):
        measured, peak = split(noise(speech, CLIP, f"key-{i}"), speech)
        assert measured == pytest.approx(ratio, abs=1.0)
        assert 0.9 * 10 ** (-12 / 20) * 0.999 <= peak <= 0.9001


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 12000), key=st.text(max_size=10))
def test_any_length_and_key(length: int, key: str) -> None:
    wave = np.linspace(-1, 1, length, dtype=np.float32)
    out = Noise(NoiseConfig(), POOL)(wave, CLIP, key)
    assert out.shape == (CLIP,)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


def test_silence_stays_finite() -> None:
    out = Noise(NoiseConfig(), [np.zeros(10, np.float32)])(np.zeros(100, np.float32), CLIP, "k")
    assert np.isfinite(out).all()


def test_offsets_cover_the_clip() -> None:
    noise = Noise(NoiseConfig(snr=(60, 60), kinds=("white",)))
    click = np.array([1.0], np.float32)
    places = [int(np.abs(noise(click, 100, f"k{i}")).argmax()) for i in range(300)]
    assert min(places) < 10
    assert max(places) > 89


def test_pool_comes_from_the_first_training_shard(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, samples=24, shards=3, modalities=("speech", "text"))
    assert len(build_noise(NoiseConfig(pool=64), dataset, "speech").pool) == 8
    assert len(build_noise(NoiseConfig(pool=3), dataset, "speech").pool) == 3
    assert build_noise(NoiseConfig(), None, "speech").kinds == ("white", "pink")
    assert build_noise(NoiseConfig(kinds=("babble",)), None, "speech").kinds == ("white",)


def test_ratios_in_order() -> None:
    with pytest.raises(ValidationError, match="lowest ratio first"):
        NoiseConfig(snr=(20.0, 3.0))
