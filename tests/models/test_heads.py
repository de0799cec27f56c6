"""Heads start from known scales, and feature norms give the lengths they promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.models.features import FeatureNorm, feature_norm, unit_norm
from outmodal.models.heads import Kind, ProjectionHead, linear_classifier


@pytest.mark.parametrize(
    ("kind", "weights"), [("linear", 2), ("linear_ln", 4), ("mlp", 6), ("mlp3", 6)]
)
def test_projection(kind: Kind, weights: int) -> None:
    torch.manual_seed(0)
    head = ProjectionHead(256, 64, kind, hidden=512)
    e = head(torch.randn(500, 256))
    assert e.shape == (500, 64)
    assert float(e.detach().std()) == pytest.approx(1.0, abs=0.35)
    e.sum().backward()
    assert len(list(head.parameters())) == weights
    assert all(p.grad is not None for p in head.parameters())
    again = ProjectionHead(head.inputs, head.dim, head.kind, head.hidden)
    again.load_state_dict(head.state_dict())


def test_hidden_width_defaults_to_the_input() -> None:
    assert ProjectionHead(12, 5, "mlp").hidden == 12


def test_classifier_starts_at_unit_scale() -> None:
    torch.manual_seed(0)
    classifier = linear_classifier(400, 10)
    assert not classifier.bias.any()
    assert float(classifier(torch.randn(300, 400)).detach().std()) == pytest.approx(1.0, abs=0.2)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-5, 1e6), dim=st.integers(1, 300))
def test_norms_do_not_depend_on_scale_or_precision(scale: float, dim: int) -> None:
    x = torch.randn(4, dim, generator=torch.Generator().manual_seed(0)) + 0.1
    kinds: dict[FeatureNorm, float] = {"l2": 1.0, "l2_sqrtd": dim**0.5}
    for kind, length in kinds.items():
        out = feature_norm(scale * x, kind)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.norm(dim=1), torch.full((4,), length), rtol=1e-4, atol=1e-4)
        assert feature_norm(x.bfloat16(), kind).dtype == torch.float32


def test_none_only_widens() -> None:
    x = torch.randn(3, 4).bfloat16()
    assert torch.equal(feature_norm(x, "none"), x.float())


def test_zero_has_a_finite_norm_and_gradient() -> None:
    x = torch.zeros(2, 5, requires_grad=True)
    e = unit_norm(x)
    assert not e.any()
    e.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_norm_stays_in_fp32_under_autocast() -> None:
    x = torch.randn(64, 33, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = unit_norm(x)
    assert torch.equal(inside, unit_norm(x))
