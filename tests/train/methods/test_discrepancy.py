"""The series of the gap between modalities: what it counts, and that training writes it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from outmodal.launch.config import load_config
from outmodal.launch.running import run_plan
from outmodal.train import diagnostics
from outmodal.train.methods.base import Context
from outmodal.train.methods.discrepancy import SAMPLES, discrepancy, probed
from outmodal.train.run import train
from tests.data.tiny import make_tiny
from tests.launch.report.runs import HEAD, METHODS


def context(samples: int) -> Context:
    labels = {"test": np.zeros(samples, dtype=np.int64)}
    return Context(3, 8, ("a",), labels, {}, {}, "train", "test", 1)


def test_the_gap_is_the_distance_of_the_mean_directions() -> None:
    right, up = torch.tensor([[2.0, 0.0], [7.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert diagnostics.modality_gap(right, up) == pytest.approx(math.sqrt(2))
    assert diagnostics.modality_gap(right, -right) == pytest.approx(2.0)
    assert diagnostics.modality_gap(right, 9 * right) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(diagnostics.modality_gap(right, up[:0]))


def test_each_two_modalities_of_one_size() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(30, 4, generator=draw), torch.randn(20, 4, generator=draw) + 2
    found = discrepancy({"a": a, "b": b, "c": torch.randn(5, 3), "d": a[:0]})
    assert set(found) == {"mmd/a-b", "modality_gap/a-b"}
    assert found["mmd/a-b"] == pytest.approx(diagnostics.mmd(a, b))
    assert discrepancy({"a": a, "b": b * math.nan}) == {}


def test_the_same_few_samples_every_time() -> None:
    assert probed(context(20)).tolist() == list(range(20))
    many = probed(context(50_000))
    assert len(many) == SAMPLES
    assert np.array_equal(many, probed(context(50_000)))
    assert np.all(np.diff(many) > 0)


@pytest.mark.parametrize("name", ["cox", "align", "erm"])
def test_training_writes_the_series_at_each_evaluation(name: str, tmp_path: Path) -> None:
    data = make_tiny(tmp_path / "data", 32, 4, ("force", "pose"), test=12)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(HEAD.format(data=data.root) + METHODS[name], "utf-8")
    more = ["--out", str(tmp_path / "run"), "--engine.epochs", "3", "--engine.eval_every", "1"]
    result = train(run_plan(load_config(str(recipe), more), tmp_path / "run"))
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [r["values"] for r in rows if r["split"] == "diagnostics"]
    evaluations = [r for r in rows if r["split"] == "eval"]
    assert not any(key.startswith(("mmd/", "modality_gap/")) for key in result.metrics)
    if name == "erm":  # one modality lies in no space with another
        assert found == []
        return
    pair = "pose-force" if name == "cox" else "force-pose"
    expected = {f"mmd/{pair}", f"modality_gap/{pair}"}
    expected |= {"judge_accuracy/pose"} if name == "cox" else set()
    assert len(found) == len(evaluations) >= 3
    assert all(set(values) == expected for values in found)
    assert all(0 < values[f"modality_gap/{pair}"] <= 2 for values in found)
    if name == "cox":
        assert any("modality_gap/pose" in r["values"] for r in rows if r["split"] == "epoch")
