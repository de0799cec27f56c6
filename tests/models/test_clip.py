"""clip_loss against plain cross-entropy, split over ranks, and with missing pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from outmodal.models.objectives.clip import clip_loss


def unit(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=-1)


def reference(e1: Tensor, e2: Tensor, scale: float) -> Tensor:
    logits = scale * e1 @ e2.T
    target = torch.arange(len(e1))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def split_gradient(
    e1: Tensor, e2: Tensor, scale: Tensor, ranks: int, present: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradients as `ranks` processes would average them.

    A leaf that every rank shares plays the parameters: each rank's rows are slices of it,
    and its columns the whole, whose gradient summed over ranks is what the reduce-scatter
    of the gather's backward delivers.
    """
    a, b = e1.clone().requires_grad_(), e2.clone().requires_grad_()
    s = scale.clone().requires_grad_()
    size = len(e1) // ranks
    losses = [
        clip_loss(
            a[r * size : (r + 1) * size],
            b[r * size : (r + 1) * size],
            s,
            a,
            b,
            r * size,
            None if present is None else present[r * size : (r + 1) * size],
            present,
        )
        for r in range(ranks)
    ]
    loss = torch.stack(losses).mean()
    ga, gb, gs = torch.autograd.grad(loss, (a, b, s))
    return loss.detach(), ga, gb, gs


@given(rows=st.integers(1, 12), dim=st.integers(1, 8), scale=st.floats(0.1, 100.0))
@settings(max_examples=30, deadline=None)
def test_equals_cross_entropy_both_ways(rows: int, dim: int, scale: float) -> None:
    e1, e2 = unit(rows, dim, 1), unit(rows, dim, 2)
    torch.testing.assert_close(clip_loss(e1, e2, scale), reference(e1, e2, scale))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_give_the_loss_and_gradient_of_the_whole_batch(ranks: int) -> None:
    e1, e2, scale = unit(8, 5, 1), unit(8, 5, 2), torch.tensor(14.0, dtype=torch.float64)
    whole, parts = split_gradient(e1, e2, scale, 1), split_gradient(e1, e2, scale, ranks)
    for expected, got in zip(whole, parts, strict=True):
        torch.testing.assert_close(got, expected)


def test_missing_pairs_leave_the_loss_of_the_pairs_that_exist() -> None:
    e1, e2, scale = unit(8, 5, 1), unit(8, 5, 2), torch.tensor(9.0, dtype=torch.float64)
    present = torch.tensor([1, 1, 0, 1, 0, 0, 0, 1], dtype=torch.bool)
    expected = reference(e1[present], e2[present], 9.0)
    torch.testing.assert_close(clip_loss(e1, e2, scale, present=present), expected)
    loss, grad, _, _ = split_gradient(e1, e2, scale, 2, present)
    torch.testing.assert_close(loss, expected)
    assert not grad[~present].any()


def test_no_pair_at_all_is_zero_with_a_zero_gradient() -> None:
    e1 = unit(4, 3, 1, torch.float32).requires_grad_()
    loss = clip_loss(e1, unit(4, 3, 2, torch.float32), 10.0, present=torch.zeros(4).bool())
    (gradient,) = torch.autograd.grad(loss, e1)
    assert loss.item() == 0.0
    assert not gradient.any()


def test_half_precision_inputs_are_compared_in_fp32_even_under_autocast() -> None:
    e1, e2 = unit(16, 8, 1).bfloat16(), unit(16, 8, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = clip_loss(e1, e2, 100.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference(e1.double(), e2.double(), 100.0).float())


def test_gradient_is_the_numerical_one() -> None:
    e1, e2 = unit(4, 3, 1).requires_grad_(), unit(4, 3, 2).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(clip_loss, (e1, e2, scale))
