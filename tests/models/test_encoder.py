"""The library: an export as an object that turns samples into vectors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import outmodal
from outmodal.data.decode import decode
from outmodal.data.encode import encode_npy, encode_png, encode_wav
from outmodal.data.manifest import Dataset
from outmodal.data.noise import NoiseConfig
from outmodal.data.shards import read_shard
from outmodal.errors import UserError
from outmodal.models.export import export_encoder
from outmodal.models.export_folder import load_export
from outmodal.models.features import feature_norm, unit_norm
from outmodal.models.learners import build_learner
from tests.data.tiny import RATE, make_tiny
from tests.models.encoders import CARD, LEARNERS, export

NAMES = {
    "vit": "image",
    "wav2vec2": "speech",
    "bert_mean": "text",
    "cnn1d": "force",
    "pose": "pose",
}
KINDS = ("vit", "wav2vec2", "bert_mean", "cnn1d")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def folders(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    return {n: export(n, dataset, root / n, "mlp", classify=n != "cnn1d") for n in KINDS}


def on_cpu(folder: Path) -> outmodal.Encoder:
    """The encoder on the device that the expected values are from."""
    return outmodal.load(folder, device="cpu")


def members(dataset: Dataset, modality: str) -> list[bytes]:
    """The bytes of every test sample's member."""
    ext = dataset.modality(modality).ext
    shards = dataset.split("test").shards
    samples = [m for s in shards for _, _, m in read_shard(dataset.shard_path(s))]
    return [m[f"{modality}.{ext}"] for m in samples]


def expected(folder: Path, dataset: Dataset) -> dict[str, torch.Tensor]:
    """What the export's modules give when its samples come through the data set's own path."""
    loaded = load_export(folder)
    name = loaded.info.modality
    transform, spec = loaded.transform(dataset, name), dataset.modality(name)
    rows = [transform.read(spec, data, "k") for data in members(dataset, name)]
    return loaded.outputs(torch.stack(rows))


@pytest.mark.parametrize("name", KINDS)
def test_bytes_files_and_values_give_what_the_trainer_gives(
    name: str, folders: dict[str, Path], dataset: Dataset, tmp_path: Path
) -> None:
    encoder = on_cpu(folders[name])
    spec = dataset.modality(NAMES[name])
    data = members(dataset, NAMES[name])
    files = [tmp_path / f"{i}.{spec.ext}" for i in range(len(data))]
    for file, content in zip(files, data, strict=True):
        file.write_bytes(content)
    wanted = unit_norm(expected(folders[name], dataset)["embedding"]).numpy()
    forms: list[list[Any]] = [data, files, [decode(spec, content) for content in data]]
    if spec.kind != "text":
        forms.append([str(file) for file in files])
    for samples in forms:
        found = encoder.embed(samples, batch=5)
        assert found.dtype == np.float32
        assert found.shape == (12, encoder.info.embed_dim)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_representations_and_lengths_as_they_are(
    folders: dict[str, Path], dataset: Dataset
) -> None:
    encoder, data = on_cpu(folders["vit"]), members(dataset, "image")
    wanted = expected(folders["vit"], dataset)
    raw = encoder.embed(data, output="representation", unit=False)
    np.testing.assert_allclose(raw, wanted["repr"].numpy(), atol=1e-5)
    raw = encoder.embed(data, unit=False)
    np.testing.assert_allclose(raw, wanted["embedding"].numpy(), atol=1e-5)
    with pytest.raises(UserError, match="no output 'embeding'; did you mean 'embedding'"):
        encoder.embed(data, output="embeding")  # type: ignore[arg-type]


def test_classes_of_samples(folders: dict[str, Path], dataset: Dataset) -> None:
    encoder = on_cpu(folders["vit"])
    found = encoder.classify(iter(members(dataset, "image")), batch=7)
    logits = expected(folders["vit"], dataset)["logits"]
    np.testing.assert_allclose(found.probabilities, logits.softmax(1).numpy(), atol=1e-5)
    assert found.names == tuple(encoder.classes[i] for i in logits.argmax(1).tolist())
    assert found.classes == encoder.classes == dataset.manifest.classes


def test_without_a_classifier_there_are_no_classes(folders: dict[str, Path]) -> None:
    encoder = on_cpu(folders["cnn1d"])
    assert encoder.classes == ()
    with pytest.raises(UserError, match="has no classifier"):
        encoder.classify([np.zeros((16, 3))])


def test_no_samples_give_no_vectors(folders: dict[str, Path]) -> None:
    encoder = on_cpu(folders["vit"])
    assert encoder.embed([]).shape == (0, 6)
    assert encoder.classify([]).probabilities.shape == (0, 3)


def test_sound_at_another_rate_is_resampled_and_training_noise_is_not_added(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = LEARNERS["wav2vec2"]
    noisy = config.input.model_copy(update={"noise": NoiseConfig(kinds=("white",))})
    learner = build_learner(config.model_copy(update={"input": noisy}))
    folder = export_encoder(
        learner,
        noisy.build(dataset, "speech", None),
        tmp_path / "out",
        head=None,
        classifier=None,
        classes=(),
        card=CARD,
        sample_inputs=torch.randn(3, *noisy.shape),
    )
    encoder = on_cpu(folder)
    wave = np.sin(np.arange(RATE // 10) * 0.3).astype(np.float32) * 0.5
    twice = np.sin(np.arange(RATE // 5) * 0.15).astype(np.float32) * 0.5
    slow, fast = (encoder.prepare(encode_wav(w, r)) for w, r in ((wave, RATE), (twice, 2 * RATE)))
    assert torch.equal(encoder.prepare(wave), encoder.prepare(wave))
    assert float((encoder.prepare(wave) - slow).abs().max()) < 1e-3
    assert float((slow - fast)[50:-50].abs().max()) < 0.05


WRONG: list[tuple[str, Any, str]] = [
    ("vit", np.zeros((12, 12), np.uint8), r"expected a non-empty array of 3 axes, got .*12, 12"),
    ("vit", np.zeros((12, 12, 4), np.uint8), "expected 1 channels, got 4"),
    ("vit", np.zeros((12, 12, 1)), "expected pixels of uint8 or uint16, got float64"),
    ("vit", b"not a picture", "not a readable image"),
    ("vit", "gone.png", r"cannot read gone\.png: No such file"),
    ("vit", 3, "expected an array, a path or bytes, got int"),
    ("wav2vec2", np.zeros((2, 800), np.float32), "array of 1 axes"),
    ("wav2vec2", np.array([0.0, np.nan]), "values that are not finite"),
    ("bert_mean", np.zeros(3), "text"),
    ("cnn1d", np.zeros((16, 4)), "expected 3 channels, got 4"),
    ("cnn1d", np.array([["a"]]), "expected numbers, got an array of <U1"),
]


@pytest.mark.parametrize(("name", "sample", "message"), WRONG)
def test_a_sample_that_does_not_fit_is_named(
    name: str, sample: Any, message: str, folders: dict[str, Path], dataset: Dataset
) -> None:
    encoder = on_cpu(folders[name])
    good: list[Any] = list(members(dataset, NAMES[name])[:3])
    with pytest.raises(UserError, match=rf"sample 3.*{message}"):
        encoder.embed([*good, sample], batch=2)


def test_an_encoder_says_what_it_reads(folders: dict[str, Path]) -> None:
    encoder = on_cpu(folders["cnn1d"])
    with pytest.raises(UserError, match=r"reads force \(series\): float \[steps, channels\]"):
        encoder.embed([np.zeros((16, 4))])
    assert repr(encoder) == "Encoder('tiny-encoder', force (series) -> 6, 0 classes, cpu)"


def test_a_modality_that_the_encoder_does_not_know(folders: dict[str, Path]) -> None:
    assert outmodal.load(folders["vit"], modality="image").modality == "image"
    with pytest.raises(UserError, match=r"does not know 'touch': it encodes 'image' \(image\)"):
        outmodal.load(folders["vit"], modality="touch")


def test_one_sample_is_not_taken_for_a_sequence(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="got one str: put it into a list"):
        on_cpu(folders["bert_mean"]).embed("a red thing")
    with pytest.raises(UserError, match="batch is 0"):
        on_cpu(folders["bert_mean"]).embed(["a red thing"], batch=0)


@pytest.mark.parametrize("device", ["warp", "cuda:99"])
def test_devices_that_are_not_there(device: str, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=f"device '{device}' cannot be used: "):
        outmodal.load(folders["cnn1d"], device=device)


def test_folders_that_are_no_exports(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no export at"):
        outmodal.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no outmodal\.json"):
        outmodal.load(str(tmp_path))


def test_normalisation_is_the_trainers(folders: dict[str, Path], dataset: Dataset) -> None:
    e = expected(folders["vit"], dataset)["embedding"]
    classifier = load_export(folders["vit"]).classifier
    assert classifier is not None
    with torch.no_grad():
        wanted = classifier(feature_norm(e, "l2_sqrtd")).softmax(1)
    found = on_cpu(folders["vit"]).classify(members(dataset, "image"))
    np.testing.assert_allclose(found.probabilities, wanted.numpy(), atol=1e-5)


def test_numpy_files_of_pictures_and_series(folders: dict[str, Path]) -> None:
    picture: NDArray[np.uint8] = np.arange(144, dtype=np.uint8).reshape(12, 12, 1)
    encoder = on_cpu(folders["vit"])
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0]).save(buffer, "TIFF")
    for form in (encode_npy(picture), encode_png(picture), buffer.getvalue()):
        assert torch.equal(encoder.prepare(form), encoder.prepare(picture))


def test_importing_outmodal_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import outmodal, json; "
        "assert callable(outmodal.__getattr__); print(json.dumps(sorted("
        "name.partition('.')[0] for name in set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "pydantic", "scipy", "PIL", "av", "safetensors"}
    assert not heavy & set(json.loads(done.stdout))


def test_names_of_the_package() -> None:
    assert {"load", "Encoder", "Guesses", "UserError"} <= set(dir(outmodal))
    assert outmodal.UserError is UserError
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        outmodal.lod  # type: ignore[attr-defined]  # noqa: B018
