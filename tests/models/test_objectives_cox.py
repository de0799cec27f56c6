"""COX's losses against their definitions, written out the slow way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outmodal.models.objectives.cox import (
    AnchorSummary,
    Direction,
    all_pairs_rows,
    kl_rows,
    knn_targets,
    log_mean_posterior,
    mean_posterior_kl,
    recon_rows,
    scale_gradient,
    target_rows,
)
from outmodal.models.objectives.entropy import entropy_rows

DIRECTIONS: list[Direction] = ["d_to_a", "a_to_d"]


def posteriors(rows: int, classes: int, seed: int, *, sharp: float = 2.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(rows, classes, generator=g, dtype=torch.float64)).requires_grad_()


def brute_force(log_d: Tensor, log_a: Tensor, direction: Direction) -> Tensor:
    """[B] mean over anchors of the KL of every pair."""
    d, a = log_d[:, None, :], log_a[None, :, :]
    p, q = (d, a) if direction == "d_to_a" else (a, d)
    return (p.exp() * (p - q)).sum(dim=2).mean(dim=1)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    anchors=st.integers(1, 9),
    classes=st.integers(2, 7),
    seed=st.integers(0, 2**20),
    direction=st.sampled_from(DIRECTIONS),
)
def test_all_pairs_equals_brute_force_in_value_and_gradient(
    rows: int, anchors: int, classes: int, seed: int, direction: Direction
) -> None:
    logits, other = posteriors(rows, classes, seed), posteriors(anchors, classes, seed + 1)
    log_a = other.detach().log_softmax(dim=1)
    slow = brute_force(logits.log_softmax(dim=1), log_a, direction)
    (slow_grad,) = torch.autograd.grad(slow.sum(), logits)
    fast = all_pairs_rows(logits.log_softmax(dim=1), AnchorSummary.of(log_a), direction)
    (fast_grad,) = torch.autograd.grad(fast.sum(), logits)
    assert torch.allclose(fast.double(), slow, atol=1e-4, rtol=1e-4)
    assert torch.allclose(fast_grad, slow_grad, atol=1e-4, rtol=1e-4)


def test_all_pairs_never_forms_the_pairs() -> None:
    log_d = torch.randn(3000, 50).log_softmax(dim=1)
    rows = all_pairs_rows(log_d, AnchorSummary.of(torch.randn(200_000, 50).log_softmax(dim=1)))
    assert rows.shape == (3000,)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_flows_through_the_disagreement_side_only(direction: Direction) -> None:
    d, a = posteriors(4, 3, 0).float(), posteriors(5, 3, 1).float()
    d, a = d.detach().requires_grad_(), a.detach().requires_grad_()
    log_d, log_a = d.log_softmax(dim=1), a.log_softmax(dim=1)
    total = (
        all_pairs_rows(log_d, AnchorSummary.of(log_a), direction).sum()
        + target_rows(log_d, knn_targets(torch.randn(4, 2), torch.randn(5, 2), a, 2)).sum()
        + mean_posterior_kl(log_mean_posterior(log_d), log_a.exp().mean(dim=0), direction)
    )
    total.backward()
    assert a.grad is None
    assert d.grad is not None
    assert bool((d.grad != 0).any())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_mean_posterior_is_the_kl_of_the_means(direction: Direction) -> None:
    log_d = posteriors(6, 4, 2).detach().float().log_softmax(dim=1)
    target = posteriors(5, 4, 3).detach().float().softmax(dim=1).mean(dim=0)
    mean = log_d.exp().mean(dim=0)
    p, q = (mean, target) if direction == "d_to_a" else (target, mean)
    expected = (p * (p / q).log()).sum()
    got = mean_posterior_kl(log_mean_posterior(log_d), target, direction)
    assert torch.allclose(got, expected, atol=1e-6)


def test_kl_is_zero_for_equal_and_finite_for_impossible_classes() -> None:
    log_p = torch.tensor([[0.0, -torch.inf], [-0.6931472, -0.6931472]])
    assert torch.allclose(kl_rows(log_p, log_p.clamp_min(-30)), torch.zeros(2), atol=1e-6)
    sure = torch.tensor([1.0, 0.0])
    log_half = torch.tensor([0.5, 0.5]).log()
    assert torch.isfinite(mean_posterior_kl(log_half, sure, "d_to_a"))
    assert torch.isfinite(mean_posterior_kl(log_half, sure, "a_to_d"))


def test_knn_takes_the_nearest_by_cosine_and_breaks_ties_by_order() -> None:
    z_a = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    q_a = torch.eye(4)
    one = knn_targets(torch.tensor([[5.0, 0.1], [-3.0, 0.0]]), z_a, q_a, 1)
    assert one.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    two = knn_targets(torch.tensor([[1.0, 0.0]]), z_a, q_a, 2)
    assert two.tolist() == [[0.5, 0.5, 0, 0]]
    everyone = knn_targets(torch.tensor([[1.0, 0.0]]), z_a, q_a, 99)
    assert torch.allclose(everyone, torch.full((1, 4), 0.25))


def test_recon_reductions_and_gradient_scale() -> None:
    v, z = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    mean, total = recon_rows(v, z), recon_rows(v, z, reduction="sum")
    assert torch.allclose(total, 8 * mean)
    assert torch.allclose(total, ((v - z) ** 2).sum(dim=1))
    grads = {
        scale: torch.autograd.grad(recon_rows(v, z, grad_scale=scale).sum(), (v, z), None, True)
        for scale in (1.0, 0.5)
    }
    assert torch.allclose(grads[0.5][1], 0.5 * grads[1.0][1])
    assert torch.allclose(grads[0.5][0], grads[1.0][0])
    recon_rows(v, z, grad_scale=0.0).sum().backward()
    assert z.grad is None
    assert v.grad is not None


def test_scale_gradient_leaves_the_value() -> None:
    t = torch.randn(3, requires_grad=True)
    assert torch.equal(scale_gradient(t, 1.0), t)
    assert torch.allclose(scale_gradient(t, 0.25), t)


def test_entropy_of_uniform_and_of_certainty() -> None:
    rows = entropy_rows(torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]]))
    assert torch.allclose(rows, torch.tensor([4.0, 1.0]).log(), atol=1e-5)


def test_half_precision_inputs_are_computed_in_single() -> None:
    z = torch.randn(4, 6, dtype=torch.bfloat16)
    assert recon_rows(z, z).dtype is torch.float32
    assert entropy_rows(z).dtype is torch.float32
    summary = AnchorSummary.of(z.float().log_softmax(dim=1).bfloat16())
    assert all_pairs_rows(z.float().log_softmax(dim=1).bfloat16(), summary).dtype is torch.float32
