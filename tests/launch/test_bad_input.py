"""Every bad input ends with exit code 2 and one sentence that names the thing and the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from outmodal.data.manifest import Dataset
from outmodal.launch.cli import main
from tests.data.tiny import make_tiny

RECIPE = """
data:
  batch: 8
  streams: 2
learners:
  - name: mlp
    modality: pose
    input: {name: vector, dim: 7}
method:
  name: erm
  unknown: pose
  label_fraction: 0.5
optim: {name: adam, lr: 1e-2}
engine: {epochs: 1, device: cpu, checkpoint_every: 1}
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_tiny(tmp_path / "data", samples=48, shards=4)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def train(recipe: str, data: Path, out: Path, *more: str) -> int:
    return main(["train", recipe, "--data.path", str(data), "--out", str(out), *more])


def message(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def rewrite(dataset: Dataset, **changes: object) -> None:
    path = dataset.root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


def test_the_good_run(dataset: Dataset, recipe: str, tmp_path: Path) -> None:
    assert train(recipe, dataset.root, tmp_path / "run") == 0
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") >= 1


def test_missing_data_set(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(recipe, tmp_path / "nowhere", tmp_path / "run") == 2
    assert "nowhere" in message(capsys)


def test_manifest_that_disagrees_with_its_tars(
    dataset: Dataset, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = dataset.root / "train-000001.tar"
    shard.write_bytes(shard.read_bytes() + b"\0" * 512)
    assert train(recipe, dataset.root, tmp_path / "run") == 2
    assert "train-000001.tar" in message(capsys)


def test_missing_shard(
    dataset: Dataset, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset.root / "train-000002.tar").unlink()
    assert train(recipe, dataset.root, tmp_path / "run") == 2
    assert "train-000002.tar" in message(capsys)


def test_fewer_samples_than_streams(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = make_tiny(tmp_path / "small", samples=3, shards=3)
    assert train(recipe, small.root, tmp_path / "run", "--data.streams", "8") == 2
    assert "data.streams" in message(capsys)


def test_label_outside_the_classes(
    dataset: Dataset, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(dataset, classes=["red", "green"])
    assert train(recipe, dataset.root, tmp_path / "run") == 2
    said = message(capsys)
    assert "train-00" in said
    assert "2" in said


def test_empty_split(
    dataset: Dataset, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((dataset.root / "dataset.json").read_text())
    rewrite(dataset, splits={**manifest["splits"], "test": {"samples": 0, "shards": []}})
    assert train(recipe, dataset.root, tmp_path / "run") == 2
    assert "'test'" in message(capsys)


def test_unknown_split_names_the_nearest(
    dataset: Dataset, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe, dataset.root, tmp_path / "run", "--data.train_split", "trian") == 2
    assert "train" in message(capsys)


def test_unknown_modality_names_the_nearest(
    dataset: Dataset, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = train(recipe, dataset.root, tmp_path / "run", "--learners.0.modality", "poze")
    assert code == 2
    assert "pose" in message(capsys)


def test_perceptor_folder_without_weights(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "perceptor"
    empty.mkdir()
    for text in (str(empty), f"image={empty}"):
        code = main(["embed", str(dataset.root), "--perceptor", text, "--out", str(tmp_path / "e")])
        assert code == 2
        assert str(empty) in message(capsys)


def test_unreadable_checkpoint_falls_back_and_says_so(
    dataset: Dataset,
    recipe: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "run"
    assert train(recipe, dataset.root, out) == 0
    steps = sorted((out / "checkpoints").glob("step-*"))
    assert len(steps) >= 2
    weights = steps[-1] / "weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    weights.write_bytes(bytes(raw))
    expected = (out / "metrics.jsonl").read_bytes()
    (out / "result.json").unlink()
    assert train(recipe, dataset.root, out) == 0
    said = message(capsys) + caplog.text
    assert "weights.safetensors" in said
    assert steps[-1].name in said
    assert (out / "metrics.jsonl").read_bytes() == expected


def test_no_readable_checkpoint_at_all(
    dataset: Dataset, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(recipe, dataset.root, out) == 0
    for folder in (out / "checkpoints").glob("step-*"):
        (folder / "manifest.json").unlink()
    (out / "result.json").unlink()
    assert train(recipe, dataset.root, out) == 2
    assert "checkpoints" in message(capsys)


def test_a_changed_configuration_is_refused(
    dataset: Dataset, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(recipe, dataset.root, out) == 0
    assert train(recipe, dataset.root, out, "--optim.lr", "0.5") == 2
    assert "optim.lr" in message(capsys)


def test_export_of_a_run_without_checkpoint(
    dataset: Dataset, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(recipe, dataset.root, out) == 0
    shutil.rmtree(out / "checkpoints")
    assert main(["export", str(out), "--to", str(tmp_path / "export")]) == 2
    assert "checkpoint" in message(capsys)


def test_export_to_an_existing_folder(
    dataset: Dataset, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(recipe, dataset.root, out) == 0
    (tmp_path / "export").mkdir()
    assert main(["export", str(out), "--to", str(tmp_path / "export")]) == 2
    assert "exists" in message(capsys)


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "export")]) == 2
    assert "config.yaml" in message(capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method.alpha", "1.5"], "method.alpha: input should be less than or equal to 1, got 1"),
        (["--method.level", "3"], "method: targets 'samples' and level 3 need `guide`: the vector"),
        (["--method.alpha", "2", "--method.smoothing", "1"], "method.smoothing: input should be"),
    ],
)
def test_values_on_the_command_line_are_refused_as_those_in_a_file(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "fashion-synergy", "--out", str(tmp_path / "run"), *words]) == 2
    error = message(capsys)
    assert f"outmodal train: {said}" in error or f"; {said}" in error
    for noise in ("validation error", "input_type", "errors.pydantic.dev"):
        assert noise not in error
