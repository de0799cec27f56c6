"""`outmodal export`: a run becomes a folder that gives the run's own embeddings, or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import load_file

import outmodal
from outmodal.launch.cli import main
from outmodal.launch.commands.export import switched
from outmodal.launch.running import open_run
from outmodal.models.features import unit_norm
from outmodal.train.methods.supervised import Supervised
from outmodal.train.run import restore_method
from tests.data.tiny import make_tiny

RECIPE = """
data: {batch: 8, streams: 2}
learners:
  - name: mlp
    modality: pose
    widths: [9, 11]
    input: {name: vector, dim: 7}
method: {name: erm, unknown: pose, label_fraction: 0.5}
optim: {name: adam, lr: 1e-2}
engine: {epochs: 1, device: cpu, threads: 1, ema: 0.9}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set `data`, a recipe and a trained `run`."""
    root = tmp_path_factory.mktemp("place")
    make_tiny(root / "data", 48, 4, ("pose",))
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    data, out = str(root / "data"), str(root / "run")
    assert main(["train", str(root / "recipe.yaml"), "--data.path", data, "--out", out]) == 0
    return root


def export(run: Path, to: Path, *more: str) -> int:
    return main(["export", str(run), "--to", str(to), *more])


def own(run: Path, ema: bool) -> dict[str, torch.Tensor]:
    """The learner's weights as the newest checkpoint has them."""
    method, _, _ = restore_method(open_run(run)[1], ema)
    learner = method.export_parts(None).learner
    return dict(learner.backbone.state_dict())


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_one_command_gives_all_forms(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    capfd.readouterr()
    assert export(place / "run", to, "--onnx", "--torch-export", "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert said["export"] == str(to)
    assert {"model.onnx", "model.pt2", "training.yaml", "README.md"} <= set(said["files"])
    check = load_file(to / "check.safetensors")
    found = outmodal.load(to).embed(list(check["inputs"].numpy()))
    np.testing.assert_allclose(found, check["embedding_unit"].numpy(), atol=1e-5)
    session = onnxruntime.InferenceSession(str(to / "model.onnx"))
    _, e = session.run(None, {"x": check["inputs"].numpy()})
    np.testing.assert_allclose(unit_norm(torch.from_numpy(e)).numpy(), found, atol=1e-4)


def test_the_average_is_exported_unless_the_last_weights_are_asked_for(
    place: Path, tmp_path: Path
) -> None:
    assert export(place / "run", tmp_path / "average") == 0
    assert export(place / "run", tmp_path / "last", "--no-ema") == 0
    average, last = (load_file(tmp_path / n / "model.safetensors") for n in ("average", "last"))
    assert same(average, own(place / "run", True))
    assert same(last, own(place / "run", False))
    assert not same(average, last)
    cards = {n: (tmp_path / n / "README.md").read_text() for n in ("average", "last")}
    assert "| weights | moving average (0.9) |" in cards["average"]
    assert "| weights | last |" in cards["last"]
    assert "The metrics are of the run's averaged weights" in cards["last"]
    assert "The metrics are of the run's averaged weights" not in cards["average"]


def test_the_card_s_command_repeats_the_encoder(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(place / "run", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    line = next(row for row in card.splitlines() if row.startswith("outmodal train"))
    assert str(place) not in (tmp_path / "out" / "training.yaml").read_text()
    monkeypatch.chdir(tmp_path / "out")
    words = [
        {"DATASET": str(place / "data"), "RUN": str(tmp_path / "again")}.get(w, w)
        for w in line.split()[1:]
    ]
    assert main(words) == 0
    assert same(own(tmp_path / "again", True), own(place / "run", True))


def test_an_export_that_exists_is_replaced_only_with_force(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    assert export(place / "run", to) == 0
    before = (to / "model.safetensors").read_bytes()
    assert export(place / "run", to, "--no-ema") == 2
    assert "out exists: choose another --to, or give --force" in capsys.readouterr().err
    assert (to / "model.safetensors").read_bytes() == before
    assert export(place / "run", to, "--no-ema", "--force") == 0
    assert (to / "model.safetensors").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_export_that_differs_from_the_run_is_not_written(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    infer = Supervised.infer

    def shifted(self: Supervised, what: str, batch: Any) -> dict[str, torch.Tensor]:
        return {k: v + 1e-3 if k == "embedding" else v for k, v in infer(self, what, batch).items()}

    monkeypatch.setattr(Supervised, "infer", shifted)
    assert export(place / "run", tmp_path / "out") == 1
    assert "embedding differs by 0.001" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["none", "unfinished"])
def test_a_run_without_a_complete_checkpoint(
    what: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    for step in (run / "checkpoints").iterdir():
        if what == "none":
            shutil.rmtree(step) if step.is_dir() else step.unlink()
        elif step.is_dir():  # what a kill during the very first write leaves
            step.rename(step.with_name(f".tmp-{step.name}"))
    assert export(run, tmp_path / "out") == 2
    assert "has no checkpoint yet: train it first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path, tmp_path / "out") == 2
    assert "is not a run: it has no config.yaml" in capsys.readouterr().err


def test_a_modality_that_the_run_does_not_know(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(place / "run", tmp_path / "out", "--modality", "poses") == 2
    assert "no encoder of 'poses'; did you mean 'pose'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


ALIGN = """
data: {batch: 8, streams: 2}
learners:
  - {name: mlp, modality: pose, widths: [9], input: {name: vector, dim: 7}}
  - {name: cnn1d, modality: force, widths: [8], input: {name: series, length: 16, channels: 3}}
method: {name: align, head: {kind: mlp3, dim: 5}}
optim: {name: adam, lr: 1e-2}
engine: {epochs: 1, device: cpu, threads: 1}
"""


def test_one_of_several_encoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = str(make_tiny(tmp_path / "data", 24, 2, ("pose", "force")).root), tmp_path / "run"
    (tmp_path / "align.yaml").write_text(ALIGN, encoding="utf-8")
    recipe = str(tmp_path / "align.yaml")
    assert main(["train", recipe, "--data.path", data, "--out", str(run)]) == 0
    assert export(run, tmp_path / "out") == 2
    assert "several encoders: name one of pose, force" in capsys.readouterr().err
    assert export(run, tmp_path / "out", "--modality", "forces") == 2
    assert "no encoder of 'forces'; did you mean 'force'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert export(run, tmp_path / "out", "--modality", "force") == 0
    encoder = outmodal.load(tmp_path / "out", modality="force")
    assert encoder.embed([np.zeros((16, 3))]).shape == (1, 5)


def test_data_without_the_encoder_s_modality(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(place / "run", tmp_path / "out") == 0
    make_tiny(tmp_path / "other", 12, 2, ("force",))
    words = ["eval", str(tmp_path / "out"), "--data", str(tmp_path / "other")]
    assert main(words) == 2
    assert "'pose'" in capsys.readouterr().err


def test_switches_need_no_value() -> None:
    assert switched([]) == []
    assert switched(["RUN", "--onnx", "--no-ema", "--to", "x", "--force", "True"]) == [
        *("RUN", "--onnx", "True", "--ema", "False", "--to", "x", "--force", "True")
    ]
    assert switched(["--torch-export"]) == ["--torch-export", "True"]


def test_a_card_tells_the_licences_of_perceptors_and_hides_paths(place: Path) -> None:
    from outmodal.launch.card import _licences, card_for

    found = _licences(["imagebind:vision@0", "hub:openai/clip/cls@0", "made-by-hand"])
    assert "non-commercial" in found["imagebind:vision@0"]
    assert found["hub:openai/clip/cls@0"] == "see that model's own card"
    assert found["made-by-hand"] == "not recorded"
    config, _ = open_run(place / "run")
    card = card_for(config, place / "run")
    recipe = yaml.safe_load(card.recipe)
    assert (recipe["out"], recipe["data"]["path"]) == ("", "tiny")
    assert set(card.metrics) >= {"top1"}


def test_a_metric_that_was_not_finite_is_left_out_of_the_card(place: Path, tmp_path: Path) -> None:
    from outmodal.launch.card import card_for

    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["split"] == "eval"
    last["values"] = {"top1": 0.5, "accuracy_disagreement": None}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    assert card_for(open_run(run)[0], run).metrics == {"top1": 0.5}
    assert export(run, tmp_path / "out") == 0
    assert "accuracy_disagreement" not in (tmp_path / "out" / "README.md").read_text()
