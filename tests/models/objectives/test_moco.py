"""Momentum contrast against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outmodal.models.objectives.moco import moco_rows


def unit(rows: int, dim: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(rows, dim, generator=g, dtype=torch.float64), dim=1
    )


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 5),
    held=st.integers(0, 7),
    temperature=st.floats(0.05, 2.0),
    seed=st.integers(0, 1000),
)
def test_rows_are_the_printed_quotient(rows: int, held: int, temperature: float, seed: int) -> None:
    q, k, queue = unit(rows, 6, seed), unit(rows, 6, seed + 1), unit(held, 6, seed + 2)
    found = moco_rows(q, k, queue, temperature)
    assert found.dtype == torch.float64
    for i in range(rows):
        own = math.exp(float(q[i] @ k[i]) / temperature)
        others = sum(math.exp(float(q[i] @ other) / temperature) for other in queue)
        assert float(found[i]) == pytest.approx(-math.log(own / (own + others)), abs=1e-9)


def test_only_the_query_has_a_gradient() -> None:
    q, k, queue = (unit(4, 6, seed).requires_grad_() for seed in range(3))
    moco_rows(q, k, queue).sum().backward()
    assert q.grad is not None
    assert k.grad is None
    assert queue.grad is None


def test_an_empty_queue_pulls_and_pushes_nothing() -> None:
    q = unit(4, 6, 0).requires_grad_()
    loss = moco_rows(q, unit(4, 6, 1)).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert q.grad is not None
    assert not q.grad.any()


def test_half_precision_is_widened() -> None:
    q, k, queue = (unit(4, 6, seed).bfloat16() for seed in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = moco_rows(q, k, queue)
    assert found.dtype == torch.float32
    exact = moco_rows(q.double(), k.double(), queue.double())
    assert torch.allclose(found.double(), exact, atol=1e-5)
