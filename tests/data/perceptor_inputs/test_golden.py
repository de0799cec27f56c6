"""Parity with what ImageBind and LanguageBind make of the same files."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

from outmodal.data.decode import decode_channels
from outmodal.data.fbank import fbank, mel_filters
from outmodal.data.manifest import Modality
from outmodal.data.perceptor_inputs import perceptor_input
from outmodal.data.perceptor_inputs.audio import Fbank
from outmodal.data.perceptor_inputs.presets import Family
from outmodal.data.resample import resample
from outmodal.data.transform import Transform
from outmodal.data.windows import spread_windows

from .golden import as_array, asset, difference, facts, picture_difference, sources, tensors

IMAGE = Modality(kind="image", ext="png")
AUDIO = Modality(kind="audio", ext="wav")
VIDEO = Modality(kind="video", ext="mp4")


def transform(family: Family, kind: str, **settings: Any) -> Transform:
    return perceptor_input(family, kind, **settings).build(None, kind, None)


def tolerance(source: str, exact: float) -> float:
    """Another JPEG decoder may differ by one step of 255."""
    return exact if source == "synthetic" else 0.0152


@pytest.mark.parametrize("source", sources("imagebind/vision_image"))
def test_imagebind_image(source: str) -> None:
    x = transform("imagebind", "vision").from_bytes(IMAGE, asset(source, "image"), "")
    assert picture_difference(x, "imagebind/vision_image", source) <= tolerance(source, 1e-5)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("source", sources("languagebind/image_thermal_noaa"))
def test_languagebind_image_and_thermal(source: str, antialias: bool) -> None:
    kind = "thermal" if source.startswith("thermal") else "image"
    file = f"languagebind/image_thermal_{'aa' if antialias else 'noaa'}"
    made = transform("languagebind", kind, antialias=antialias)
    x = made.from_bytes(IMAGE, asset(source, "image"), "")
    assert picture_difference(x, file, source) <= tolerance(source, 1e-5)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("source", sources("languagebind/depth_noaa"))
def test_languagebind_depth(source: str, antialias: bool) -> None:
    file = f"languagebind/depth_{'aa' if antialias else 'noaa'}"
    made = transform("languagebind", "depth", antialias=antialias)
    x = made.from_bytes(IMAGE, asset(source, "depth"), "")
    assert picture_difference(x, file, source) <= 1e-5


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_imagebind_video_crops(shape: str) -> None:
    stored = tensors("imagebind/video")
    frames = as_array(stored[f"frames_{shape}.input_thwc"])
    x = transform("imagebind", "video", clips=1)(frames, "")
    assert difference(x[..., ::8, ::8], stored[f"frames_{shape}.crops_stride8"]) <= 2e-5


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_languagebind_video_frames(shape: str) -> None:
    stored = tensors("languagebind/video")
    frames = as_array(stored[f"frames_{shape}.input_thwc"])
    x = transform("languagebind", "video", frames=3)(frames, "")
    assert difference(x[..., ::8, ::8], stored[f"frames_{shape}.stride8"]) <= 2e-5


@pytest.mark.parametrize("family", ["imagebind", "languagebind"])
def test_film_files(family: Family) -> None:
    stored = {k: v for k, v in tensors(f"{family}/video").items() if k.startswith("decord.")}
    if stored:  # only where the film itself is at hand
        x = transform(family, "video").from_bytes(VIDEO, asset("languagebind", "video"), "")
        assert difference(x[..., ::8, ::8], stored["decord.stride8"]) <= 2e-5
        moments = torch.stack([x.mean((-2, -1)), x.std((-2, -1))], dim=-1)
        assert difference(moments, stored["decord.mean_std"]) <= 2e-5


def test_imagebind_film_frames() -> None:
    film = facts("imagebind/info")["video"]
    made: Any = transform("imagebind", "video")
    picked = made._pick(film["frames"], Fraction(film["fps"]))
    assert picked == [i for clip in film["frame_indices_per_clip"] for i in clip]


def test_languagebind_film_frames() -> None:
    made: Any = transform("languagebind", "video")
    for count, expected in facts("languagebind/info")["frame_indices"].items():
        assert made._pick(int(count), None) == expected


def test_windows() -> None:
    for case in facts("imagebind/info")["clip_windows"]:
        duration = Fraction(str(case["duration"]))
        made = spread_windows(duration, case["clip_seconds"], case["clips"])
        expected = [pytest.approx(window, abs=1e-12) for window in case["windows"]]
        assert [[float(a), float(b)] for a, b in made] == expected


@pytest.mark.parametrize("key", sorted(tensors("imagebind/audio")))
def test_imagebind_audio(key: str) -> None:
    source, carry = key.partition(".")[0], "independent" not in key
    made = transform("imagebind", "audio", carry_offset=carry)
    x = made.from_bytes(AUDIO, asset(source.removesuffix("_independent_clips"), "audio"), "")
    assert difference(x[..., ::2], tensors("imagebind/audio")[key]) <= 5e-4


@pytest.mark.parametrize("source", sources("languagebind/audio"))
def test_languagebind_audio(source: str) -> None:
    stored = tensors("languagebind/audio")
    x = transform("languagebind", "audio").from_bytes(AUDIO, asset(source, "audio"), "")
    assert difference(x[0, :, ::2], stored[f"{source}.channel0_stride2"]) <= 5e-4
    assert difference(x[0, :, -32:], stored[f"{source}.tail32"]) <= 5e-4
    assert x[0].equal(x[1])
    assert x[0].equal(x[2])


def test_languagebind_long_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """With upstream's random starts, three parts of the sound fill the channels."""
    long = facts("languagebind/info")["audio_long"]
    made = transform("languagebind", "audio")
    assert isinstance(made, Fbank)
    ranges = long["start_ranges"]
    middles = made.starts(long["frames"])
    assert all(a <= start <= b for start, (a, b) in zip(middles, ranges, strict=True))
    first = transform("languagebind", "audio", start="first")
    assert isinstance(first, Fbank)
    assert first.starts(long["frames"]) == [a for a, _ in ranges]
    monkeypatch.setattr(made, "starts", lambda frames: long["starts"])
    wave, rate = _left("synthetic")
    sound = torch.from_numpy(resample(wave, rate, 16_000)).repeat(5)
    assert len(sound) == long["samples"]
    x = made(as_array(sound), "")
    assert difference(x[:, ::4, ::16], tensors("languagebind/audio")["long.stride16"]) <= 5e-4


def _left(source: str) -> tuple[Any, int]:
    sound, rate = decode_channels(asset(source, "audio"))
    return sound[0], rate


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling(rate: int) -> None:
    stored = tensors("imagebind/audio_blocks")
    for wave, expected in zip(
        stored[f"resample.{rate}.input"], stored[f"resample.{rate}.output_16000"], strict=True
    ):
        made = torch.from_numpy(resample(as_array(wave), rate, 16_000))
        assert difference(made, expected) <= 2e-5


@pytest.mark.parametrize("mels", [112, 128])
def test_filterbanks(mels: int) -> None:
    stored = tensors("imagebind/audio_blocks")
    assert difference(mel_filters(mels), stored[f"melbank.{mels}"]) <= 3e-5
    wave = stored["fbank.input"][0]
    made = torch.from_numpy(fbank(as_array(wave - wave.mean()), mels))
    assert difference(made, stored[f"fbank.{mels}"]) <= 1e-3


def test_spectrogram_before_normalisation() -> None:
    stored = tensors("imagebind/audio_blocks")
    made = transform("imagebind", "audio", clips=1, mean=0.0, std=1.0)
    x = made(as_array(stored["fbank.input"][0]), "")
    assert difference(x[0], stored["waveform2melspec.128x204"]) <= 1e-3


def test_imagebind_tokens() -> None:
    text = facts("imagebind/info")["text"]
    made = transform("imagebind", "text")
    assert [made(s, "").tolist() for s in text["strings"]] == text["tokens"]


def test_languagebind_tokens() -> None:
    text = facts("languagebind/tokens")
    made = transform("languagebind", "language")
    assert [made(s, "").tolist() for s in text["strings"]] == text["input_ids"]
