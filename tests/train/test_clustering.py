"""k-means and the names of its clusters."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.errors import UserError
from outmodal.train.clustering import kmeans, matched, purity


def blobs(each: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9]])
    truth = torch.arange(4).repeat_interleave(each)
    order = torch.randperm(4 * each, generator=g)
    return (centres[truth] + torch.randn(4 * each, 2, generator=g))[order], truth[order]


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_lie_apart_are_found(seed: int) -> None:
    x, truth = blobs(seed=seed)
    found = kmeans(x, 4, seed)
    assert purity(found.label, truth) == 1.0
    for group in range(4):
        assert torch.allclose(found.centres[group], x[found.label == group].mean(dim=0), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 99))
def test_a_grouping_is_settled_and_seeded(n: int, k: int, seed: int) -> None:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)).round()
    if n < k:
        with pytest.raises(UserError, match=f"{n} samples cannot be put into {k} clusters"):
            kmeans(x, k, seed)
        return
    found = kmeans(x, k, seed)
    assert torch.equal(found.label, kmeans(x, k, seed).label)
    assert 0 <= int(found.label.min()) <= int(found.label.max()) < k
    gaps = torch.cdist(x, found.centres)
    own = gaps.gather(1, found.label[:, None])[:, 0]
    assert bool((own <= gaps.amin(dim=1) + 1e-4).all())


def test_equal_rows() -> None:
    found = kmeans(torch.ones(5, 2), 3, 0)
    assert torch.equal(found.centres[found.label], torch.ones(5, 2))


def test_a_far_offset_costs_no_precision() -> None:
    x, truth = blobs()
    assert purity(kmeans(x.double() + 1e4, 4, 0).label, truth) == 1.0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 99))
def test_names_keep_as_many_rows_as_any_renaming(k: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    label, before = (torch.randint(0, k, (25,), generator=g) for _ in range(2))
    kept = int((matched(label, before, k) == before).sum())
    renamings = (torch.tensor(p)[label] for p in permutations(range(k)))
    assert kept == max(int((r == before).sum()) for r in renamings)


def test_unknown_rows_do_not_count() -> None:
    label = torch.tensor([0, 0, 1, 1, 1])
    before = torch.tensor([1, 1, -1, -1, 0])
    assert matched(label, before, 2).tolist() == [1, 1, 0, 0, 0]
    assert purity(label, torch.tensor([0, 1, -1, 1, 1])) == 0.75
    assert purity(label[:0], label[:0]) != purity(label[:0], label[:0])  # NaN
