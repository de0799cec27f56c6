"""Windows on recordings, and the clips of sounds and films that lie in them."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from outmodal.data.decode import DecodeError
from outmodal.data.draws import Draw
from outmodal.data.inputs import LogMelInput, VideoInput, WaveformInput
from outmodal.data.manifest import Modality
from outmodal.data.windows import Place, windows

DRAW = Draw(3, 1, "sound")
RAMP = np.arange(1000, dtype=np.float32)


def starts(duration: int, length: int, count: int, place: Place, **more: Any) -> list[Fraction]:
    return [start for start, _ in windows(duration, length, count, place, **more)]


def test_places() -> None:
    assert starts(10, 4, 1, "start") == [0]
    assert starts(10, 4, 1, "uniform") == [3]
    assert starts(10, 4, 3, "uniform") == [1, 3, 5]
    assert starts(10, 4, 1, "imagebind") == [0]
    assert starts(10, 4, 5, "imagebind") == [0, Fraction(3, 2), 3, Fraction(9, 2), 6]
    assert starts(10, 4, 3, "random") == [1, 3, 5]  # without a draw: the middles


@settings(deadline=None, max_examples=60)
@given(
    st.fractions(0, 1000),
    st.fractions(Fraction(1, 100), 100),
    st.integers(1, 7),
    st.sampled_from(["start", "uniform", "random", "imagebind"]),
    st.integers(0, 99),
)
def test_windows_lie_in_the_recording(
    duration: Fraction, length: Fraction, count: int, place: Place, seed: int
) -> None:
    found = windows(duration, length, count, place, np.random.default_rng(seed))
    assert len(found) == count
    assert found == sorted(found)
    for start, end in found:
        assert end - start == length
        assert start == 0 if duration <= length else 0 <= start <= duration - length


def test_random_windows_are_uniform_in_their_parts() -> None:
    drawn = [
        starts(100, 20, 2, "random", generator=DRAW.generator(f"{i}", "w")) for i in range(2000)
    ]
    first, second = np.array(drawn, float).T
    assert stats.kstest(first / 40, "uniform").pvalue > 1e-4
    assert stats.kstest(second / 40 - 1, "uniform").pvalue > 1e-4


def waveform(**more: Any) -> Any:
    settings = {"seconds": 0.1, "sample_rate": 1000, "normalize": False, **more}
    return WaveformInput(**settings).build(None, "sound", None)


def test_clips_of_a_sound() -> None:
    assert waveform()(RAMP, "k")[0] == 0
    assert waveform(window="uniform")(RAMP, "k")[0] == 450
    three = waveform(window="imagebind", clips=3)
    assert three.shape == (3, 100)
    assert three(RAMP, "k")[:, 0].tolist() == [0, 450, 900]
    short = three(RAMP[:60], "k")
    assert short.shape == (3, 100)
    assert short[2, 59] == 59
    assert short[:, 60:].eq(0).all()


def test_random_clips_differ_by_key_and_epoch_in_training_alone() -> None:
    transform = waveform(window="random")
    assert transform.random
    assert transform(RAMP, "k")[0] == 450
    assert transform.compact(RAMP, "k", replace(DRAW, policy="none"))[0] == 450
    drawn = [float(transform.compact(RAMP, f"{i}", DRAW)[0]) for i in range(1500)]
    assert stats.kstest((np.array(drawn) + 0.5) / 900, "uniform").pvalue > 1e-4
    again = transform.compact(RAMP, "7", DRAW)
    assert float(again[0]) == drawn[7]
    epochs = {float(transform.compact(RAMP, "7", replace(DRAW, epoch=e))[0]) for e in range(20)}
    assert len(epochs) > 15
    assert not waveform(window="uniform").random


def test_clips_of_a_spectrogram() -> None:
    wave = np.random.default_rng(0).standard_normal(24_000, dtype=np.float32)
    one = LogMelInput(window="uniform").build(None, "speech", None)
    three = LogMelInput(window="imagebind", clips=3).build(None, "speech", None)
    assert three.shape == (3, *one.shape)
    assert torch.equal(three(wave, "k")[1], one(wave, "k"))
    first = LogMelInput().build(None, "speech", None)
    assert torch.equal(three(wave, "k")[0], first(wave, "k"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: WaveformInput(clips=2),
        lambda: VideoInput(clips=2),
        lambda: VideoInput(clips=2, window="start"),
    ],
)
def test_several_clips_at_one_place_are_refused(make: Any) -> None:
    with pytest.raises(ValidationError, match="gives one clip, not 2: use uniform, random or"):
        make()


def wav(sound: NDArray[np.float32], rate: int) -> bytes:
    """[channels, T] as a file."""
    file = io.BytesIO()
    soundfile.write(file, sound.T, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


AUDIO = Modality(kind="audio", ext="wav", sample_rate=1000)
STEREO = np.stack([np.linspace(-0.5, 0.5, 300), np.linspace(0.9, 0.1, 300)]).astype(np.float32)


def test_channels_are_kept_or_mixed() -> None:
    two = waveform(channels=2)
    assert two.shape == (2, 100)
    kept = two.from_bytes(AUDIO, wav(STEREO, 1000), "k")
    np.testing.assert_allclose(kept, STEREO[:, :100], atol=1e-6)
    mixed = waveform().from_bytes(AUDIO, wav(STEREO, 1000), "k")
    np.testing.assert_allclose(mixed, STEREO.mean(0)[:100], atol=1e-6)
    with pytest.raises(DecodeError, match="expected 2 channels, got 1"):
        two.from_bytes(AUDIO, wav(STEREO[:1], 1000), "k")
    clips = waveform(channels=2, clips=2, window="imagebind")
    assert clips.shape == (2, 2, 100)
    np.testing.assert_allclose(
        clips.from_bytes(AUDIO, wav(STEREO, 1000), "k")[1], STEREO[:, 200:], atol=1e-6
    )
    mel = LogMelInput(channels=2).build(None, "sound", None)
    assert mel.shape == (2, 40, 51)
    loud = np.random.default_rng(1).standard_normal((2, 8000)).astype(np.float32) * 0.1
    made = mel(loud, "k")
    plain = LogMelInput().build(None, "sound", None)
    torch.testing.assert_close(made[1:], plain(loud[1], "k"))


def test_channels_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(ValidationError, match="noise is for one channel"):
        WaveformInput(channels=2, noise={})
    with pytest.raises(ValidationError, match="need one audio channel"):
        LogMelInput(channels=2, bands="channels")


@pytest.mark.parametrize("channels", [1, 2])
def test_files_at_another_rate_are_resampled(channels: int) -> None:
    time = np.arange(3000) / 3000
    tone = np.stack([np.sin(2 * np.pi * 40 * time), np.cos(2 * np.pi * 40 * time)])
    transform = waveform(channels=channels, seconds=1.0)
    data = wav(tone[:channels].astype(np.float32), 3000)
    unknown = AUDIO.model_copy(update={"sample_rate": None})
    for spec in (AUDIO, unknown, AUDIO.model_copy(update={"sample_rate": 2000})):
        found = transform.from_bytes(spec, data, "k").view(channels, -1)
        expected = tone[:channels, ::3]
        np.testing.assert_allclose(found[:, 50:-50], expected[:, 50:-50], atol=5e-3)


FILM = np.stack([np.full((6, 8, 3), i, np.uint8) for i in range(90)])


def film(**more: Any) -> Any:
    settings = {"frames": 3, "size": (6, 8), "mean": (0.0,), "std": (1.0,), "rate": 30.0, **more}
    return VideoInput(**settings).build(None, "film", None)


def seen(x: torch.Tensor) -> list[Any]:
    """Numbers of the frames, by their grey."""
    grey = x[..., 0, 0, 0].float() * (255 if x.is_floating_point() else 1)
    found: list[Any] = grey.round().tolist()
    return found


def test_clips_of_a_film() -> None:
    assert seen(film()(FILM, "k")) == [0, 44, 89]
    assert seen(film(window="start", seconds=1.0)(FILM, "k")) == [0, 14, 29]
    assert seen(film(window="uniform", seconds=1.0)(FILM, "k")) == [30, 44, 59]
    three = film(window="imagebind", seconds=1.0, clips=3)
    assert three.shape == (3, 3, 3, 6, 8)
    assert seen(three(FILM, "k")) == [[0, 14, 29], [30, 44, 59], [60, 74, 89]]
    assert seen(three(FILM[:1], "k")) == [[0, 0, 0]] * 3
    assert three.stored == (three.shape, torch.uint8)
    stored = three.compact(FILM, "k")
    assert stored.dtype == torch.uint8
    assert torch.equal(three.finish(stored[None], torch.zeros(1).long())[0], three(FILM, "k"))


def test_random_frames_lie_in_equal_parts() -> None:
    transform = film(sampling="random")
    assert transform.random
    assert seen(transform(FILM, "k")) == [0, 44, 89]
    drawn = np.array([seen(transform.compact(FILM, f"{i}", DRAW)) for i in range(600)])
    for part in range(3):
        counts = np.bincount(drawn[:, part].astype(int) - 30 * part, minlength=30)
        assert len(counts) == 30
        assert stats.chisquare(counts).pvalue > 1e-4
    moved = film(window="random", seconds=1.0)
    first = [seen(moved.compact(FILM, f"{i}", DRAW))[0] for i in range(300)]
    assert min(first) <= 3
    assert max(first) >= 57


def test_augmented_films() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    transform = film(
        size=(8, 8),
        augment=[{"name": "random_resized_crop"}, {"name": "hflip", "p": 1.0}],
    )
    assert transform.random
    stored = transform.compact(gray, "k", DRAW)
    assert not torch.equal(stored, transform.compact(gray, "k"))
    keys = torch.tensor([5])
    out = transform.finish(stored[None], keys, DRAW)
    assert torch.equal(out, transform.finish(stored[None], keys).flip(-1))
