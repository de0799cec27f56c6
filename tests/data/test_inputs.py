"""Every input: shapes, purity, pickling, and the preprocessor that transformers loads."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from transformers import AutoFeatureExtractor, AutoImageProcessor, ViTConfig

from outmodal.data.decode import DecodeError
from outmodal.data.inputs import (
    BaseInput,
    ImageInput,
    InputConfig,
    LogMelInput,
    NoiseConfig,
    SeriesInput,
    TokenInput,
    VectorInput,
    VideoInput,
    WaveformInput,
    vector_input_for,
)
from outmodal.data.manifest import Modality
from outmodal.data.transform import fit_values
from outmodal.errors import UserError
from tests.data.tiny import make_tiny

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (28, 28, 1), dtype=np.uint8)
WAVE = RNG.standard_normal(5000).astype(np.float32) * 0.1
SERIES = RNG.standard_normal((20, 3)).astype(np.float32)
CASES: list[tuple[BaseInput, NDArray[Any]]] = [
    (ImageInput(), PICTURE),
    (ImageInput(size=(16, 20), channels=3, mean=(0.5, 0.4, 0.3), std=(0.2,)), PICTURE),
    (WaveformInput(), WAVE),
    (WaveformInput(normalize=False, noise=NoiseConfig()), WAVE),
    (LogMelInput(), WAVE),
    (LogMelInput(noise=NoiseConfig(), seconds=0.5, n_fft=256), WAVE),
    (LogMelInput(n_fft=401, hop=100), WAVE),
    (LogMelInput(bands="channels"), WAVE),
    (SeriesInput(length=32, channels=3, mean=(0.0,), std=(1.0,)), SERIES),
    (SeriesInput(length=8, channels=3, mean=(0.0, 1.0, 2.0), std=(1.0, 2.0, 3.0)), SERIES),
    (VectorInput(dim=7, normalize=True), RNG.standard_normal(7)),
    (VideoInput(frames=3, size=(12, 10)), RNG.integers(0, 256, (5, 20, 16, 3), dtype=np.uint8)),
]


@pytest.mark.parametrize(("config", "value"), CASES)
def test_shape_purity_pickling_and_rebuilding(config: BaseInput, value: NDArray[Any]) -> None:
    transform = config.build(None, "m", None)
    before = value.copy()
    out = transform(value, "key")
    assert out.shape == transform.shape == config.shape
    assert out.dtype == transform.dtype == torch.float32
    assert torch.isfinite(out).all()
    np.testing.assert_array_equal(value, before)
    shape, dtype = transform.stored
    assert torch.equal(transform.zeros(), torch.zeros(shape, dtype=dtype))
    assert torch.equal(pickle.loads(pickle.dumps(transform))(value, "key"), out)  # noqa: S301
    text = transform.config.model_dump_json()
    again: BaseInput = TypeAdapter(InputConfig).validate_json(text)
    assert again == config
    assert torch.equal(again.build(None, "m", None)(value, "key"), out)


@pytest.mark.parametrize(
    ("config", "value"),
    [
        (ImageInput(), np.zeros((28, 28), np.uint8)),
        (ImageInput(), np.zeros((28, 28, 2), np.uint8)),
        (ImageInput(), np.zeros((28, 28, 1), np.float32)),
        (ImageInput(), "text"),
        (WaveformInput(), np.zeros((10, 2), np.float32)),
        (LogMelInput(), np.zeros(0, np.float32)),
        (SeriesInput(length=4, channels=3, mean=(0.0,), std=(1.0,)), np.zeros((4, 2), np.float32)),
        (VectorInput(dim=3), np.zeros(4, np.float32)),
        (VideoInput(), np.zeros((4, 8, 8, 2), np.uint8)),
    ],
)
def test_values_that_do_not_fit_are_decode_errors(config: BaseInput, value: Any) -> None:
    with pytest.raises(DecodeError):
        config.build(None, "m", None)(value, "key")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageInput(mean=(0.1, 0.2)), "mean has 2 values for 1 channels"),
        (lambda: ImageInput(std=(0.0,)), "std must be positive"),
        (lambda: LogMelInput(f_max=5000.0), "sample_rate / 2"),
        (lambda: LogMelInput(seconds=0.02), "too short for n_fft"),
        (lambda: SeriesInput(length=3, channels=2, mean=(0.0,)), "both of mean and std"),
        (lambda: VectorInput(dim=0), "greater than 0"),
    ],
)
def test_configurations_that_cannot_work(make: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()


def test_unknown_input_name() -> None:
    with pytest.raises(ValidationError, match="log_mel"):
        TypeAdapter(InputConfig).validate_python({"name": "logmel"})


def test_wrong_kind_names_the_modality_and_the_remedy(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, modalities=("speech", "image"))
    with pytest.raises(UserError, match=r"'image' reads image, but modality 'speech' .* is audio"):
        ImageInput().build(dataset, "speech", None)
    with pytest.raises(UserError, match="speech"):
        ImageInput().build(dataset, "speach", None)


# ---- pictures


def processed(folder: Path, picture: Any) -> NDArray[np.float32]:
    """The pixel values that AutoImageProcessor computes from an export folder."""
    ViTConfig().save_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels: NDArray[np.float32] = processor(picture, return_tensors="np")["pixel_values"][0]
    return pixels


def test_saved_image_processor_gives_the_same_pixels_without_torchvision(tmp_path: Path) -> None:
    transform = ImageInput(mean=(0.29,), std=(0.35,)).build(None, "image", None)
    transform.save(tmp_path)
    np.testing.assert_allclose(
        processed(tmp_path, PICTURE), transform(PICTURE, "k").numpy(), atol=1e-5
    )
    assert "torchvision" not in sys.modules


@pytest.mark.parametrize("shape", [(40, 30, 3), (10, 50, 3), (28, 28, 3)])
def test_saved_image_processor_resizes_alike(shape: tuple[int, ...], tmp_path: Path) -> None:
    config = ImageInput(size=(28, 20), channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    picture = RNG.integers(0, 256, shape, dtype=np.uint8)
    transform = config.build(None, "image", None)
    transform.save(tmp_path)
    theirs = processed(tmp_path, Image.fromarray(picture))
    level = 1.001 / 255 / min(config.std)  # both round to bytes between the two passes
    np.testing.assert_allclose(theirs, transform(picture, "k").numpy(), atol=level)


def test_sixteen_bits(tmp_path: Path) -> None:
    depth = RNG.integers(0, 65536, (28, 28, 1)).astype(np.uint16)
    config = ImageInput(mean=(0.0,), std=(1.0,), bits=16)
    transform = config.build(None, "image", None)
    out = transform(depth, "k").numpy()
    np.testing.assert_allclose(out[0], depth[:, :, 0] / 65535.0, atol=1e-6)
    transform.save(tmp_path)
    np.testing.assert_allclose(processed(tmp_path, depth), out, atol=1e-5)
    flat = np.full((40, 40, 1), 50000, np.uint16)
    np.testing.assert_allclose(transform(flat, "k").numpy(), 50000 / 65535, atol=1e-6)


def test_channels_meet() -> None:
    grey = ImageInput(mean=(0.0,), std=(1.0,)).build(None, "image", None)
    colour = ImageInput(channels=3, mean=(0.0,), std=(1.0,)).build(None, "image", None)
    picture = RNG.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    luminance = np.asarray(Image.fromarray(picture).convert("L"))
    np.testing.assert_allclose(grey(picture, "k")[0].numpy(), luminance / 255.0, atol=1.01 / 255)
    repeated = colour(PICTURE, "k")
    assert torch.equal(repeated[0], repeated[2])
    six = ImageInput(size=(8, 8), channels=6, mean=(0.0,), std=(1.0,)).build(None, "image", None)
    assert six(np.full((30, 30, 6), 51, np.uint8), "k").mean() == pytest.approx(0.2)


def test_video_takes_even_frames() -> None:
    film = np.stack([np.full((4, 4, 3), 10 * i, np.uint8) for i in range(11)])
    config = VideoInput(frames=3, size=(4, 4), mean=(0.0,), std=(1.0,))
    out = config.build(None, "video", None)(film, "k")
    np.testing.assert_allclose(out[:, 0, 0, 0].numpy() * 255, [0, 50, 100], atol=1e-4)
    one = config.build(None, "video", None)(film[:1], "k")
    assert one.shape == (3, 3, 4, 4)


# ---- audio


def test_log_mel_export_gives_the_same_decibels(tmp_path: Path) -> None:
    config = LogMelInput(mean=-30.0, std=12.0)
    transform = config.build(None, "speech", None)
    transform.save(tmp_path)
    ViTConfig().save_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    theirs = extractor(WAVE, sampling_rate=8000, return_tensors="np")["input_features"][0]
    expected = (theirs.swapaxes(1, 2) - config.mean) / config.std
    np.testing.assert_allclose(transform(WAVE, "k").numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
def test_waveform_export_gives_the_same_values(normalize: bool, tmp_path: Path) -> None:
    config = WaveformInput(normalize=normalize)
    transform = config.build(None, "speech", None)
    transform.save(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    for wave in (WAVE, np.tile(WAVE, 3)):
        theirs = extractor(
            wave,
            sampling_rate=8000,
            padding="max_length",
            max_length=config.samples,
            truncation=True,
            return_tensors="np",
        )["input_values"][0]
        np.testing.assert_allclose(transform(wave, "k").numpy(), theirs, atol=1e-5)


def test_audio_stored_at_another_rate_is_resampled(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, modalities=("speech",))
    config = WaveformInput(sample_rate=4000, normalize=False)
    transform = config.build(dataset, "speech", None)
    time = np.arange(8000) / 8000
    out = transform(np.sin(2 * np.pi * 440 * time).astype(np.float32), "k").numpy()
    expected = np.sin(2 * np.pi * 440 * np.arange(4000) / 4000)
    np.testing.assert_allclose(out[100:-100], expected[100:-100], atol=0.02)


def test_noisy_input_reads_its_babble_from_the_data(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, modalities=("speech",))
    config = LogMelInput(noise=NoiseConfig(kinds=("babble",)))
    one, two = (config.build(dataset, "speech", None) for _ in range(2))
    assert torch.equal(one(WAVE, "key"), two(WAVE, "key"))
    assert not torch.equal(one(WAVE, "key"), one(WAVE, "other"))
    assert not torch.equal(one(WAVE, "key"), LogMelInput().build(None, "s", None)(WAVE, "key"))


@settings(max_examples=20, deadline=None)
@given(n_fft=st.integers(32, 512), hop=st.integers(20, 300), seconds=st.floats(0.1, 1.2))
def test_log_mel_shape_is_known_before_any_data(n_fft: int, hop: int, seconds: float) -> None:
    config = LogMelInput(n_fft=n_fft, hop=hop, seconds=seconds, n_mels=8)
    assert config.build(None, "speech", None)(WAVE, "k").shape == config.shape


# ---- arrays


def test_series_measures_its_channels(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, modalities=("force",))
    transform = SeriesInput(length=16, channels=3).build(dataset, "force", None)
    values = [v for _, v in fit_values(dataset, "force", 1000)]
    assert len(values) == 24
    rows = torch.cat([transform(v, "k") for v in values])
    np.testing.assert_allclose(rows.mean(0).numpy(), 0.0, atol=1e-4)
    np.testing.assert_allclose(rows.std(0, correction=0).numpy(), 1.0, atol=1e-4)
    resolved = transform.config
    again = resolved.build(None, "force", None)
    assert torch.equal(again(values[0], "k"), transform(values[0], "k"))


def test_series_that_cannot_be_measured(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, modalities=("force",))
    with pytest.raises(UserError, match="has 4 channels"):
        SeriesInput(length=16, channels=4).build(dataset, "force", None)
    with pytest.raises(UserError, match="set both"):
        SeriesInput(length=16, channels=3).build(None, "force", None)


def test_short_series_end_in_zeros() -> None:
    config = SeriesInput(length=30, channels=3, mean=(1.0,), std=(2.0,))
    out = config.build(None, "force", None)(SERIES, "k").numpy()
    np.testing.assert_allclose(out[:20], (SERIES - 1.0) / 2.0, atol=1e-6)
    assert not out[20:].any()


def test_vectors() -> None:
    vector = np.array([3.0, 4.0], np.float64)
    plain = VectorInput(dim=2).build(None, "pose", None)(vector, "k")
    unit = VectorInput(dim=2, normalize=True).build(None, "pose", None)(vector, "k")
    assert plain.tolist() == [3.0, 4.0]
    assert unit.tolist() == pytest.approx([0.6, 0.8])


def test_vector_input_for() -> None:
    spec = Modality(kind="vector", ext="npy", shape=(7,))
    assert vector_input_for(spec) == VectorInput(dim=7)
    for bad in (
        Modality(kind="vector", ext="npy"),
        Modality(kind="vector", ext="npy", shape=(-1,)),
        Modality(kind="text", ext="txt"),
    ):
        with pytest.raises(UserError, match="give this modality a learner"):
            vector_input_for(bad)


def test_fit_values_passes_over_what_is_absent(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, modalities=("text", "pose"), missing={"text": [0, 1, 5]})
    keys = [key for key, _ in fit_values(dataset, "text", 4)]
    assert keys == ["train-00002", "train-00003", "train-00004", "train-00006"]


def test_registry_holds_every_input() -> None:
    names = {"image", "waveform", "log_mel", "tokens", "series", "vector", "video"}
    schema = TypeAdapter(InputConfig).json_schema()
    assert set(schema["discriminator"]["mapping"]) == names
    assert TokenInput().shape == (24,)


def test_bands_as_channels_hold_the_same_numbers() -> None:
    high = LogMelInput().build(None, "speech", None)(WAVE, "key")
    deep = LogMelInput(bands="channels").build(None, "speech", None)(WAVE, "key")
    assert deep.shape == (40, 1, 51)
    assert torch.equal(deep[:, 0], high[0])


def test_per_clip_normalisation_hides_the_level() -> None:
    transform = LogMelInput(per_clip=True).build(None, "speech", None)
    wave = np.random.default_rng(1).standard_normal(8000).astype(np.float32) * 0.1
    loud, quiet = transform(wave, "key"), transform(wave * 0.25, "key")
    assert torch.allclose(loud, quiet, atol=1e-4)
    assert abs(float(loud.mean())) < 1e-4
    assert abs(float(loud.std()) - 1) < 1e-2
