"""Rows, records, and scores of classifications: checked against scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)

from outmodal.train.intervals import Bootstrap, Score
from outmodal.train.results import COLUMNS, Of, Table, classified, five_best

CLASSES = tuple("abcdefgh")


def test_classification_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 8, (300,), generator=generator)
    logits = torch.randn(300, 8, generator=generator)
    logits[torch.arange(300), truth] += 1.0
    table = Table(Bootstrap(draws=50))
    classified(table, five_best(logits), truth, CLASSES, Of(modality="image"))
    found = table.done(300)
    guess, names = logits.argmax(dim=1).numpy(), np.arange(8)
    for k in (1, 5):
        expected = top_k_accuracy_score(truth.numpy(), logits.numpy(), k=k, labels=names)
        assert found.metrics[f"top{k}"] == pytest.approx(expected)
    expected = balanced_accuracy_score(truth.numpy(), guess)
    assert found.metrics["mean_per_class"] == pytest.approx(expected)
    assert found.confusion is not None
    assert np.array_equal(np.array(found.confusion), confusion_matrix(truth.numpy(), guess))
    recalls = recall_score(truth.numpy(), guess, average=None)
    assert list(found.per_class.values()) == pytest.approx(recalls.tolist())


def test_classes_without_samples_and_few_classes() -> None:
    table = Table(Bootstrap(draws=10))
    classified(table, torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 0]), ("a", "b"))
    found = table.done(2)
    assert found.metrics == {"top1": 0.5, "top5": 1.0, "mean_per_class": 0.5}
    assert found.per_class == {"a": 0.5}
    assert found.confusion == ((1, 1), (0, 0))


def test_equal_logits_go_to_the_smaller_class() -> None:
    assert five_best(torch.zeros(2, 8)).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_records_are_json_and_tidy() -> None:
    table = Table(Bootstrap(draws=10))
    table.mean("noise/3/top1", "top1", [1.0, 0.0], Of("image", corruption="noise", severity=3))
    table.add("ratio", "relative_error", Score("relative_error", float("nan"), count=2))
    table.number("before/agreement_rate", 0.25)
    table.mean("nothing", "top1", [])
    found = table.done(2, seed=3).with_settings(draws=10)
    data = json.loads(json.dumps(found.record("corruptions"), allow_nan=False))
    assert list(data["metrics"]) == ["noise/3/top1", "ratio", "before/agreement_rate"]
    assert data["metrics"]["ratio"] == {"value": None, "low": None, "high": None, "samples": 2}
    assert data["settings"] == {"seed": 3, "draws": 10}
    row = data["rows"][0]
    assert tuple(row) == COLUMNS
    assert (row["task"], row["metric"], row["corruption"]) == ("corruptions", "top1", "noise")
    assert (row["modality"], row["severity"], row["rate"]) == ("image", 3, None)
    assert data["rows"][2]["metric"] == "agreement_rate"


def test_a_confusion_matrix_of_a_thousand_classes_is_left_out() -> None:
    table, best = Table(Bootstrap(draws=0)), torch.tensor([[0, 1], [999, 3]])
    classified(table, best, torch.tensor([0, 3]), [f"c{n}" for n in range(1000)])
    found = table.done(2)
    assert found.confusion is None
    assert found.per_class == {"c0": 1.0, "c3": 0.0}
    assert found.metrics["top1"] == 0.5
