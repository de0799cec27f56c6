"""Targets of MixText against their formulas, in fp64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.models.objectives.mixtext import (
    divergence_rows,
    mixed,
    sharpen,
    soft_cross_entropy_rows,
)


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 6), seed=st.integers(0, 1000), temperature=st.floats(0.1, 2.0))
def test_sharpening_is_the_normalised_power(classes: int, seed: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(5, classes, generator=g, dtype=torch.float64).softmax(dim=1)
    powers = q ** (1 / temperature)
    wanted = powers / powers.sum(dim=1, keepdim=True)
    assert torch.allclose(sharpen(q, temperature), wanted)
    assert torch.allclose(sharpen(q, 1.0), q)


def test_sharpening_of_a_hard_label_is_itself() -> None:
    hard = torch.tensor([[1.0, 0.0, 0.0]])
    assert torch.allclose(sharpen(hard, 0.5), hard)


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 6), seed=st.integers(0, 1000))
def test_losses_are_cross_entropy_and_divergence(classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=g, dtype=torch.float64)
    t = torch.randn(5, classes, generator=g, dtype=torch.float64).softmax(dim=1)
    entropy = -(t * t.log()).sum(dim=1)
    wanted = -(t * logits.log_softmax(dim=1)).sum(dim=1)
    assert torch.allclose(soft_cross_entropy_rows(logits, t), wanted)
    assert torch.allclose(divergence_rows(logits, t), wanted - entropy)
    assert (divergence_rows(logits, t) >= -1e-12).all()


def test_hard_targets_have_finite_losses() -> None:
    logits = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    hard = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    exact = torch.nn.functional.cross_entropy(logits, torch.tensor([1]))
    assert torch.allclose(soft_cross_entropy_rows(logits, hard)[0], exact)
    assert torch.allclose(divergence_rows(logits, hard)[0], exact)


def test_mixing_is_linear() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert mixed(a, b, 0.75).tolist() == [0.75, 0.25]
