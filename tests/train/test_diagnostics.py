"""Diagnostics on cases whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from outmodal.train.diagnostics import (
    accuracy,
    histogram,
    mean_feature_std,
    mmd,
    subsample,
    top_k_accuracy,
)


def slow_mmd(a: torch.Tensor, b: torch.Tensor) -> float:
    pooled = torch.cat([a, b]).double()
    gaps = ((pooled[:, None] - pooled[None]) ** 2).sum(dim=2)
    n = len(pooled)
    off = [float(gaps[i, j]) for i in range(n) for j in range(n) if i != j]
    median = torch.tensor(off, dtype=torch.float64).median()
    kernel = torch.exp(-gaps / (2 * median))
    m = len(a)
    squared = kernel[:m, :m].mean() + kernel[m:, m:].mean() - 2 * kernel[:m, m:].mean()
    return math.sqrt(max(0.0, float(squared)))


def test_mmd_equals_its_definition() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(13, 5, generator=g), torch.randn(9, 5, generator=g) + 1.0
    assert mmd(a, b) == pytest.approx(slow_mmd(a, b), abs=1e-5)


def test_mmd_grows_with_the_distance_of_the_means() -> None:
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(300, 4, generator=g), torch.randn(300, 4, generator=g)
    values = [mmd(a, b + shift) for shift in (0.0, 0.5, 2.0)]
    assert values[0] < 0.1 < values[1] < values[2]
    assert mmd(a, a) == pytest.approx(0.0, abs=1e-3)


def test_mmd_survives_collapse_a_far_mean_and_emptiness() -> None:
    same = torch.ones(20, 3)
    assert mmd(same, same) == pytest.approx(0.0, abs=1e-6)
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(50, 4, generator=g), torch.randn(50, 4, generator=g) + 1
    assert mmd(a + 1e3, b + 1e3) == pytest.approx(mmd(a, b), abs=1e-2)
    assert math.isnan(mmd(a[:0], b))


def test_subsample_is_seeded_and_sorted() -> None:
    rows = torch.arange(100)
    one = subsample(rows, 10, 3)
    assert len(one) == 10
    assert torch.equal(one, one.sort().values)
    assert torch.equal(one, subsample(rows, 10, 3))
    assert torch.equal(subsample(rows, 100, 3), rows)


def test_feature_std_shows_collapse() -> None:
    assert mean_feature_std(torch.ones(10, 4)) == 0.0
    assert mean_feature_std(torch.randn(5000, 4)) == pytest.approx(1.0, abs=0.1)


def test_accuracies_count_known_truth_only() -> None:
    truth = torch.tensor([0, 1, 2, -1])
    assert accuracy(torch.tensor([0, 1, 1, 1]), truth) == pytest.approx(2 / 3)
    logits = torch.tensor([[3.0, 2.0, 1.0]]).repeat(4, 1)
    assert top_k_accuracy(logits, truth, 1) == pytest.approx(1 / 3)
    assert top_k_accuracy(logits, truth, 2) == pytest.approx(2 / 3)
    assert top_k_accuracy(logits, truth, 5) == 1.0
    assert math.isnan(accuracy(truth[:0], truth[:0]))


def test_histogram_counts_absent_classes_as_zero() -> None:
    assert histogram(torch.tensor([2, 2, 0]), 4) == [1, 0, 2, 0]
