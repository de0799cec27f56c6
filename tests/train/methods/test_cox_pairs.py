"""Pairs against brute force: class means, pairs within a class, emergent correspondence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.errors import UserError
from outmodal.train.methods.cox_pairs import (
    Correspondence,
    class_means,
    correspond,
    pair_roles,
    same_class,
)
from outmodal.train.methods.cox_sets import AGREE, DISAGREE, NO_ROLE, Verdict


def test_class_means() -> None:
    x, label = torch.randn(30, 4), torch.randint(-1, 3, (30,))
    label[label == 2] = 0
    means, counts = class_means(x, label, 4)
    for c in (0, 1):
        assert torch.allclose(means[c], x[label == c].mean(0), atol=1e-6)
        assert counts[c] == (label == c).sum()
    assert not means[2:].any()
    assert counts[2:].tolist() == [0, 0]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 12), pool=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_pair_has_one_class_and_every_row_with_a_candidate_has_one(
    rows: int, pool: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(-1, 3, (rows,), generator=g)
    candidates = torch.randint(-1, 3, (pool,), generator=g)
    place, found = same_class(label, candidates, torch.randn(rows, pool, generator=g))
    for i in range(rows):
        able = label[i] >= 0 and bool((candidates == label[i]).any())
        assert bool(found[i]) == able
        assert not able or candidates[place[i]] == label[i]


def test_each_candidate_of_a_class_is_as_likely() -> None:
    g = torch.Generator().manual_seed(0)
    place, _ = same_class(
        torch.zeros(4000, dtype=torch.int64),
        torch.tensor([0, 1, 0, 0]),
        torch.randn(4000, 4, generator=g),
    )
    counts = torch.bincount(place, minlength=4)
    assert counts[1] == 0
    assert ((counts[[0, 2, 3]] - 4000 / 3).abs() < 150).all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(2, 15),
    known=st.integers(1, 3),
    paired=st.booleans(),
    seed=st.integers(0, 99),
)
def test_correspondence_equals_brute_force(
    rows: int, columns: int, known: int, paired: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    z, present = torch.randn(rows, 4, generator=g), torch.rand(rows, generator=g) < 0.8
    v = [torch.randn(columns, 4, generator=g) for _ in range(known)]
    truth = torch.randint(0, 2, (columns,), generator=g)
    labels = [torch.where(torch.rand(columns, generator=g) < 0.8, truth, -1) for _ in range(known)]
    for one in labels:
        one[0] = truth[0]  # someone has everything
    found = correspond(z, present, v, labels, paired=paired, tile=(2, 3))
    for j in range(rows):
        gaps = torch.stack([(z[j] - part).norm(dim=1) for part in v])
        for k in range(known):
            gaps[k][labels[k] < 0] = torch.inf
        if paired:
            best = gaps.mean(0).argmin().expand(known)
        else:
            best = gaps.argmin(dim=1)
        chosen = truth[best]
        if not present[j] or len(set(chosen.tolist())) > 1:
            assert found.label[j] == -1
            assert found.distance[j] == torch.inf
            assert found.partner[:, j].tolist() == [-1] * known
        else:
            assert found.label[j] == chosen[0]
            assert torch.equal(found.partner[:, j], best)
            mean = gaps.gather(1, best[:, None]).mean()
            assert torch.allclose(found.distance[j], mean, atol=1e-5)


def test_no_complete_known_sample_is_refused_with_a_remedy() -> None:
    labels = [torch.tensor([0, -1]), torch.tensor([-1, 0])]
    z, v = torch.randn(3, 2), [torch.randn(2, 2)] * 2
    with pytest.raises(UserError, match=r"has all of image, text.*im_paired false"):
        correspond(z, torch.ones(3).bool(), v, labels, names=("image", "text"))
    apart = correspond(z, torch.ones(3).bool(), v, labels, names=("image", "text"), paired=False)
    assert apart.partner.tolist() == [[0] * 3, [1] * 3]


def test_anchors_are_the_nearest_whatever_the_judges_say() -> None:
    found = Correspondence(
        torch.zeros(1, 6, dtype=torch.int64),
        torch.tensor([0.5, 0.1, 0.1, 0.3, torch.inf, 0.0]),
        torch.tensor([1, 0, 1, 1, -1, 1]),
    )
    agree = torch.tensor([True, False, True, False, True, True])
    verdict = Verdict(torch.zeros(2, 6, dtype=torch.int64), agree, torch.ones(6))
    candidates = torch.tensor([True] * 5 + [False])
    roles = pair_roles(found, verdict, candidates, anchors=2, quota=None)
    assert roles.tolist() == [AGREE, 0, 1, DISAGREE, AGREE, NO_ROLE]
    every = pair_roles(found, verdict, candidates, anchors=9, quota=None)
    assert every.tolist() == [1, 0, 1, 1, AGREE, NO_ROLE]
    even = pair_roles(found, verdict, candidates, anchors=3, quota=1 / 3)
    assert even.tolist() == [AGREE, 0, 1, DISAGREE, AGREE, NO_ROLE]
