"""The exploration term and the running anchor posterior."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outmodal.train.methods.cox_config import CoxChoices
from outmodal.train.methods.cox_explore import AnchorMean, Side, explore_term

CLASSES = 4


def side(rows: int, seed: int, kept: int | None = None) -> tuple[Side, Tensor]:
    """A side of `rows` rows of which the first `kept` belong to it, and its logits."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, CLASSES, generator=g).requires_grad_()
    mask = torch.arange(rows) < (rows if kept is None else kept)
    return Side.of(torch.randn(rows, 3, generator=g), logits, mask), logits


def term(explore: str, disagree: Side, anchors: Side, **keys: object) -> Tensor:
    choices = CoxChoices.model_validate({"explore": explore, **keys})
    mean = AnchorMean(CLASSES, choices.anchor_ema)
    return explore_term(choices, disagree, anchors, mean, sizes=(7, 11), knn=2)


def pair_kl(disagree: Side, anchors: Side) -> Tensor:
    d, a = disagree.log_q[disagree.rows][:, None], anchors.log_q[anchors.rows][None]
    return (d.exp() * (d - a)).sum(dim=2)


def test_all_pairs_has_the_printed_prefactor_over_whole_sets() -> None:
    (d, _), (a, _) = side(5, 0, 4), side(6, 1, 3)
    expected = pair_kl(d, a).mean() * 7 * 11 / (7 + 11)
    assert torch.allclose(term("all_pairs", d, a), expected, atol=1e-5)


def test_all_pairs_counts_the_step_where_batches_form_the_sets() -> None:
    (d, _), (a, _) = side(5, 0, 4), side(6, 1, 3)
    choices = CoxChoices(explore="all_pairs")
    got = explore_term(choices, d, a, AnchorMean(CLASSES, 0.9), sizes=None, knn=1)
    assert torch.allclose(got, pair_kl(d, a).sum() / (4 + 3), atol=1e-5)


def test_knn_aims_at_the_mean_posterior_of_the_nearest() -> None:
    (d, _), (a, _) = side(4, 2), side(5, 3, 4)
    cosine = torch.nn.functional.cosine_similarity(d.z[:, None], a.z[None, :4], dim=2)
    target = a.log_q.exp()[cosine.topk(2, dim=1).indices].mean(dim=1)
    expected = (d.log_q.exp() * (d.log_q - target.log())).sum(dim=1).mean()
    assert torch.allclose(term("knn", d, a), expected, atol=1e-5)


def test_mean_posterior_compares_means() -> None:
    (d, _), (a, _) = side(4, 2, 3), side(5, 3, 4)
    mean_d = d.log_q[:3].exp().mean(dim=0)
    target = a.log_q[:4].exp().mean(dim=0)  # nothing was seen before: the step's own
    forward = (mean_d * (mean_d / target).log()).sum()
    backward = (target * (target / mean_d).log()).sum()
    assert torch.allclose(term("mean_posterior", d, a), forward, atol=1e-5)
    got = term("mean_posterior", d, a, explore_kl="a_to_d")
    assert torch.allclose(got, backward, atol=1e-5)


@pytest.mark.parametrize("explore", ["mean_posterior", "all_pairs", "knn"])
@pytest.mark.parametrize("empty", ["disagree", "anchors"])
def test_an_empty_side_gives_an_attached_zero(explore: str, empty: str) -> None:
    d, logits = side(4, 0, 0 if empty == "disagree" else 4)
    a, _ = side(5, 1, 0 if empty == "anchors" else 5)
    loss = term(explore, d, a)
    assert loss.item() == 0.0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("explore", ["mean_posterior", "all_pairs", "knn"])
@pytest.mark.parametrize("direction", ["d_to_a", "a_to_d"])
def test_only_disagreement_rows_have_a_gradient(explore: str, direction: str) -> None:
    (d, moved), (a, held) = side(4, 0, 3), side(5, 1)
    term(explore, d, a, explore_kl=direction).backward()
    assert held.grad is None
    assert moved.grad is not None
    assert moved.grad[:3].any(dim=1).all()
    assert not moved.grad[3].any()


def test_descending_the_term_brings_the_posteriors_together() -> None:
    (_, moved), (a, _) = side(6, 0), side(6, 1)
    for explore in ("mean_posterior", "all_pairs", "knn"):
        logits = moved.detach().clone().requires_grad_()
        z = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
        values = []
        for _ in range(30):
            loss = term(explore, Side.of(z, logits, torch.ones(6).bool()), a)
            (grad,) = torch.autograd.grad(loss, logits)
            logits = (logits - 0.3 * grad).requires_grad_()
            values.append(loss.item())
        assert values[-1] < values[0]


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5),
    decay=st.sampled_from([0.9, 1.0]),
)
def test_running_mean_does_not_see_micro_batches(cuts: list[int], decay: float) -> None:
    """Micro-batches that share a step's number, of unlike content: exactly the uncut mean."""
    whole, cut = AnchorMean(2, decay), AnchorMean(2, decay)
    start = torch.tensor([[0.5, 0.5]])
    whole.start(start)
    cut.start(start)
    for step, parts in enumerate(cuts):
        q = torch.rand(6, 2, generator=torch.Generator().manual_seed(step)).softmax(dim=1)
        whole.advance(step)
        whole.see(q, 1.0)
        for part in q.chunk(parts):
            cut.advance(step)
            cut.see(part, 1 / parts)
        assert torch.allclose(whole.mean, cut.mean, atol=1e-6)
    assert torch.allclose(whole.mean.sum(), torch.tensor(1.0), atol=1e-5)


@pytest.mark.parametrize("decay", [0.9, 1.0])
def test_running_mean_moves_as_far_in_numbered_micro_batches(decay: float) -> None:
    """Micro-batches with numbers of their own move the mean as far as a whole step does."""
    whole, cut = AnchorMean(2, decay), AnchorMean(2, decay)
    q = torch.tensor([[0.2, 0.8]]).repeat(4, 1)
    for mean, parts in ((whole, 1), (cut, 4)):
        mean.start(torch.tensor([[1.0, 0.0]]))
        for number in range(5 * parts + 1):
            mean.advance(number)
            mean.see(q[: 4 // parts], 1 / parts)
    assert torch.allclose(whole.mean, cut.mean, atol=1e-6)


def test_running_mean_decays_or_averages() -> None:
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for decay, expected in ((0.9, 0.9), (1.0, 0.5)):
        mean = AnchorMean(2, decay)
        assert mean.empty
        mean.start(first)
        mean.advance(3)
        mean.see(second, 1.0)
        assert mean.mean.tolist() == [1.0, 0.0]  # counts from the next step on
        mean.advance(4)
        assert mean.mean.tolist() == pytest.approx([expected, 1 - expected])
        mean.advance(5)  # a step that saw nothing changes nothing
        assert mean.mean.tolist() == pytest.approx([expected, 1 - expected])


def test_running_mean_starts_once_and_survives_a_checkpoint() -> None:
    mean = AnchorMean(2, 0.9)
    mean.start(torch.tensor([[1.0, 0.0]]))
    mean.start(torch.tensor([[0.0, 1.0]]))
    assert mean.mean.tolist() == [1.0, 0.0]
    mean.advance(1)
    mean.see(torch.tensor([[0.0, 1.0]]), 1.0)
    again = AnchorMean(2, 0.9)
    again.load({k: t.clone() for k, t in mean.state().items()})
    mean.advance(2)
    again.advance(2)
    assert torch.equal(mean.mean, again.mean)
