"""Critics and the noise-contrastive objective of InfoBridge."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from outmodal.models.critic import (
    CriticKind,
    MlpCritic,
    build_critic,
    information_rows,
    margin,
    nce_rows,
)

KINDS: tuple[CriticKind, ...] = ("mlp", "bilinear")


def test_an_undecided_critic() -> None:
    """h = 1/6 and L_NCE = -2.70 at s = 0 with five negatives."""
    gamma, zero = margin(5), torch.zeros(7)
    assert float(torch.sigmoid(torch.tensor(gamma))) == pytest.approx(1 / 6)
    found = nce_rows(zero, torch.zeros(7, 5), gamma)
    assert found.tolist() == pytest.approx([-2.7034] * 7, abs=1e-4)
    assert torch.allclose(found, nce_rows(zero, torch.zeros(7, 10), gamma))  # two sides: a mean
    assert information_rows(zero, gamma).tolist() == pytest.approx([math.log(5 / 6)] * 7)


def test_without_margin() -> None:
    assert margin(1, 1) == 0.0
    found = nce_rows(torch.zeros(1), torch.zeros(1, 1), 0.0)
    assert float(found) == pytest.approx(2 * math.log(0.5))


@given(
    n0=st.integers(1, 9),
    n1=st.integers(1, 3),
    s=st.lists(st.floats(-30, 30), min_size=3, max_size=3),
)
def test_the_objective_is_equation_one(n0: int, n1: int, s: list[float]) -> None:
    gamma = margin(n0, n1)
    positive, negative = torch.tensor(s[:1]).double(), torch.tensor([s[1:]]).double()

    def h(score: Tensor) -> Tensor:
        return torch.sigmoid(score + math.log(n1 / n0))

    wanted = h(positive).log() + n0 / n1 * (1 - h(negative)).log().mean(dim=1)
    if torch.isfinite(wanted).all():
        found = nce_rows(positive.float(), negative.float(), gamma).double()
        assert torch.allclose(found, wanted, atol=1e-3, rtol=1e-4)
    bound = math.log(n0 / n1) + h(positive).log()
    assert torch.allclose(information_rows(positive.float(), gamma).double(), bound, atol=1e-4)


def test_the_best_critic_gives_the_bound() -> None:
    """With s = log p12 / (p1 p2), the mean of `information_rows` stays below the information, and
    close to it for many negatives."""
    joint = torch.tensor([[0.4, 0.1], [0.1, 0.4]]).double()
    s = (joint / (joint.sum(1, keepdim=True) * joint.sum(0))).log()
    information = float((joint * s).sum())
    bounds = [float((joint * information_rows(s, margin(n))).sum()) for n in (1, 5, 10_000)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(information, abs=1e-3)
    assert all(b <= information + 1e-6 for b in bounds)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_scored_by_itself(kind: CriticKind) -> None:
    torch.manual_seed(0)
    critic = build_critic(kind, 6, 9, 4)
    r1, r2, t = torch.randn(5, 6), torch.randn(5, 3, 9), torch.tensor([0, 1, 2, 3, 0])
    found = critic(r1[:, None], r2, t[:, None])
    assert found.shape == (5, 3)
    assert found.dtype is torch.float32
    for i in range(5):
        for j in range(3):
            one = critic(r1[i : i + 1], r2[i, j][None], t[i : i + 1])
            assert float(one.detach()) == pytest.approx(float(found[i, j].detach()), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_matters_once_it_is_learned(kind: CriticKind) -> None:
    torch.manual_seed(0)
    critic = build_critic(kind, 6, 6, 2)
    r1, r2 = torch.randn(4, 6), torch.randn(4, 6)
    zeros, ones = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    if kind == "bilinear":  # turns by nothing at first
        assert torch.equal(critic(r1, r2, zeros), critic(r1, r2, ones))
        torch.nn.init.normal_(critic.context.weight)  # type: ignore[union-attr,arg-type]
    assert not torch.allclose(critic(r1, r2, zeros), critic(r1, r2, ones))


def test_no_bias_on_the_output() -> None:
    last = MlpCritic(3, 3, 1).layers[-1]
    assert last.bias is None


def test_bilinear_is_a_scaled_cosine() -> None:
    torch.manual_seed(0)
    critic = build_critic("bilinear", 5, 5, 2)
    r1, r2 = torch.randn(3, 5), torch.randn(3, 5)
    p1, p2 = critic.projected(r1, r2)
    wanted = 10 * F.cosine_similarity(p1.double(), p2.double(), dim=1)
    found = critic(r1, r2, torch.zeros(3, dtype=torch.int64))
    assert torch.allclose(found.double(), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_fp32_within_autocast_and_with_half_weights(kind: CriticKind) -> None:
    critic = build_critic(kind, 4, 4, 2)
    r, t = torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
    plain = critic(r, r, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(critic(r, r, t), plain)
    assert critic.to(torch.bfloat16)(r, r, t).dtype is torch.float32
