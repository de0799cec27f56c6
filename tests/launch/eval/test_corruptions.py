"""`outmodal eval --task corruptions` of encoders of pictures and of sounds, on real data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outmodal.data.corruptions import CORRUPTIONS
from outmodal.launch.cli import main

RECIPE = """
data: {path: fashion-speech-sample, batch: 64, streams: 4}
method: {name: erm, unknown: MODALITY, label_fraction: 1.0}
optim: {name: adam, lr: 3.0e-3}
engine: {epochs: 2, max_steps: 40, device: cpu, threads: 1, eval_every: 0}
learners:
  - LEARNER
"""
LEARNERS = {
    "image": "{name: mlp, modality: image, widths: [64], "
    "input: {name: image, size: [28, 28], channels: 1, mean: [0.286], std: [0.353]}}",
    "speech": "{name: cnn1d, modality: speech, widths: [16, 32], "
    "input: {name: log_mel, bands: channels, seconds: 1.0, sample_rate: 8000, per_clip: true}}",
}
KINDS = {"image": "image", "speech": "audio"}


@pytest.mark.parametrize("modality", ["image", pytest.param("speech", marks=pytest.mark.long)])
def test_damaged_inputs_cost_accuracy(
    modality: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    text = RECIPE.replace("MODALITY", modality).replace("LEARNER", LEARNERS[modality])
    recipe.write_text(text, "utf-8")
    assert main(["train", str(recipe), "--out", str(run)]) == 0
    capfd.readouterr()
    words = ("--severities", "1", "5", "--most", "120", "--draws", "50", "--json")
    assert main(["eval", str(run), "--task", "corruptions", *words]) == 0
    found = json.loads(capfd.readouterr().out)
    values = {name: held["value"] for name, held in found["metrics"].items()}
    names = CORRUPTIONS[KINDS[modality]]
    wanted = {f"{name}/{severity}/top1" for name in names for severity in (1, 5)}
    assert wanted <= set(values)
    assert found["samples"] == 120
    clean = values["clean/top1"]
    assert clean > 0.2  # of ten classes
    worst = {name: values[f"{name}/5/top1"] for name in names}
    assert min(worst.values()) < clean - 0.1
    assert values["mean/top1"] < clean
    assert sum(values[f"{n}/5/top1"] <= values[f"{n}/1/top1"] for n in names) > len(names) / 2
