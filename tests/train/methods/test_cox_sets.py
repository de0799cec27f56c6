"""Judges and the sets they form, against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.train.methods.cox_sets import (
    AGREE,
    DISAGREE,
    NO_ROLE,
    Judge,
    Verdict,
    batch_roles,
    form_roles,
    judge_all,
    refit,
    rows_with,
)


def judges(count: int, seed: int, *, classes: int = 3, dim: int = 4) -> list[Judge]:
    g = torch.Generator().manual_seed(seed)
    return [
        Judge(torch.randn(classes, dim, generator=g), torch.randn(classes, generator=g))
        for _ in range(count)
    ]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 4),
    rows=st.integers(0, 40),
    anchors=st.integers(0, 12),
    seed=st.integers(0, 999),
)
def test_roles_equal_brute_force(count: int, rows: int, anchors: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    z, own = torch.randn(rows, 4, generator=g), torch.randint(0, 3, (rows,), generator=g)
    candidates = torch.rand(rows, generator=g) < 0.8
    board = judges(count, seed)
    roles = form_roles(judge_all(board, z, own), candidates, anchors=anchors)

    expected, agreed = [NO_ROLE] * rows, []
    for j in range(rows):
        if not candidates[j]:
            continue
        posteriors = [(h.weight @ z[j] + h.bias).softmax(dim=0) for h in board]
        votes = [int(p.argmax()) for p in posteriors] + ([int(own[j])] if count == 1 else [])
        if len(set(votes)) > 1:
            expected[j] = DISAGREE
        else:
            expected[j] = AGREE
            agreed.append((-sum(float(p.max()) for p in posteriors) / count, j, votes[0]))
    for _, j, vote in sorted(agreed)[:anchors]:
        expected[j] = vote
    assert roles.tolist() == expected


def test_equal_confidence_is_settled_by_index() -> None:
    verdict = Verdict(torch.ones(2, 5, dtype=torch.int64), torch.ones(5).bool(), torch.ones(5))
    roles = form_roles(verdict, torch.tensor([False, True, True, True, True]), anchors=2)
    assert roles.tolist() == [NO_ROLE, 1, 1, AGREE, AGREE]


def test_quota_bounds_each_class_of_anchors() -> None:
    predictions = torch.tensor([[0, 0, 0, 0, 1, 1]])
    verdict = Verdict(predictions, torch.ones(6).bool(), torch.linspace(1, 0.5, 6))
    roles = form_roles(verdict, torch.ones(6).bool(), anchors=4, quota=0.5)
    assert roles.tolist() == [0, 0, AGREE, AGREE, 1, 1]


def test_rows_with_a_role_are_sorted_indices() -> None:
    roles = torch.tensor([2, DISAGREE, 0, NO_ROLE, AGREE, DISAGREE])
    assert rows_with(roles, None).tolist() == [0, 2]
    assert rows_with(roles, DISAGREE).tolist() == [1, 5]


def test_batch_roles_take_the_most_confident_of_the_batch() -> None:
    verdict = Verdict(
        torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]]),
        torch.tensor([True, True, True, False]),
        torch.tensor([0.5, 0.9, 0.9, 1.0]),
    )
    index = torch.tensor([4, 9, 3, 1])
    rows = torch.tensor([True, True, True, True])
    assert batch_roles(verdict, index, rows, 1).tolist() == [AGREE, AGREE, 1, DISAGREE]
    assert batch_roles(verdict, index, rows, 9).tolist() == [0, 1, 1, DISAGREE]
    absent = torch.tensor([True, True, False, False])
    assert batch_roles(verdict, index, absent, 1).tolist() == [AGREE, 1, NO_ROLE, NO_ROLE]


def test_refit_learns_repeats_itself_and_leaves_its_start_alone() -> None:
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (600,), generator=g)
    x = 3 * torch.eye(4)[label] + torch.randn(600, 4, generator=g)
    label[:50] = -1
    (start,) = judges(1, 1)
    held = start.weight.clone()
    kept = {"epochs": 20, "batch": 16, "seed": 5}
    one, two = refit(start, x, label, **kept), refit(start, x, label, **kept)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(start.weight, held)
    known = label >= 0

    def hits(judge: Judge) -> float:
        return float((judge(x[known]).argmax(dim=1) == label[known]).float().mean())

    assert hits(one) > max(0.8, hits(start))
    assert torch.equal(refit(start, x, label, epochs=0, batch=16, seed=5).weight, held)


def test_refit_ignores_unlabelled_rows() -> None:
    x, label = torch.randn(40, 4), torch.randint(0, 3, (40,))
    (start,) = judges(1, 2)
    label[10:] = -1
    other = x.clone()
    other[10:] = 1e6
    kept = {"epochs": 2, "batch": 4, "seed": 0}
    assert torch.equal(
        refit(start, x, label, **kept).weight, refit(start, other, label, **kept).weight
    )


def test_confidence_is_the_mean_over_judges() -> None:
    z, board = torch.randn(7, 4), judges(3, 4)
    verdict = judge_all(board, z, torch.zeros(7, dtype=torch.int64))
    peaks = torch.stack([h(z).softmax(dim=1).max(dim=1).values for h in board])
    assert torch.allclose(verdict.confidence, peaks.mean(dim=0))
    assert verdict.predictions.shape == (3, 7)


@pytest.mark.parametrize("own", [0, 1])
def test_a_single_judge_is_compared_with_the_classifier(own: int) -> None:
    judge = Judge(torch.zeros(2, 4), torch.tensor([1.0, 0.0]))
    verdict = judge_all([judge], torch.randn(3, 4), torch.full((3,), own))
    assert verdict.agree.tolist() == [own == 0] * 3
