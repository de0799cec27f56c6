"""FreeMatch's thresholds and fairness against their formulas, in fp64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outmodal.models.objectives.freematch import (
    class_histogram,
    class_thresholds,
    fairness,
    kept_rows,
)


def shares(classes: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(classes, generator=g, dtype=torch.float64).softmax(dim=0)


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 6), seed=st.integers(0, 1000), level=st.floats(0.1, 0.99))
def test_a_row_is_kept_at_its_classs_threshold(classes: int, seed: int, level: float) -> None:
    g = torch.Generator().manual_seed(seed)
    q = (3 * torch.randn(20, classes, generator=g, dtype=torch.float64)).softmax(dim=1)
    prior = shares(classes, seed + 1)
    height = torch.tensor(level, dtype=torch.float64)
    label, sure = kept_rows(q, height, prior)
    for i, row in enumerate(q.tolist()):
        c = row.index(max(row))
        assert int(label[i]) == c
        assert bool(sure[i]) == (row[c] >= float(height * (prior[c] / prior.max())))
    assert float(class_thresholds(height, prior).max()) == level


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 6), seed=st.integers(0, 1000))
def test_fairness_is_minus_the_cross_entropy_of_the_quotients(classes: int, seed: int) -> None:
    p, h, p_batch, h_batch = (shares(classes, 4 * seed + k) for k in range(4))
    a, b = p / h, p_batch / h_batch
    a, b = a / a.sum(), b / b.sum()
    assert torch.allclose(fairness(p, h, p_batch, h_batch), (a * b.log()).sum())
    assert float(fairness(p, h, p_batch, h_batch)) <= 0.0


def test_its_descent_moves_predictions_away_from_classes_that_are_predicted_often() -> None:
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    logits = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    # printed with this sign: added to the loss, it is lowest where the batch leaves the target
    fairness(even, even, logits.softmax(dim=0), even).backward()
    assert logits.grad is not None
    assert logits.grad[0] < 0


def test_classes_that_are_not_predicted_are_left_out_without_nan() -> None:
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    batch = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64, requires_grad=True)
    seen = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    value = fairness(even, even, batch, seen)
    value.backward()
    b = torch.tensor([0.6 / 0.5, 0.3 / 0.5], dtype=torch.float64)
    assert torch.allclose(value, ((b / b.sum()).log() / 3).sum())
    assert batch.grad is not None
    assert batch.grad.isfinite().all()
    assert float(batch.grad[2]) == 0.0


def test_a_histogram_sums_to_one() -> None:
    assert class_histogram(torch.tensor([0, 2, 2, 2]), 4).tolist() == [0.25, 0.0, 0.75, 0.0]
    assert class_histogram(torch.tensor([], dtype=torch.int64), 2).tolist() == [0.0, 0.0]
