"""Labelled draws, agreement, and top-k, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.errors import UserError
from outmodal.train.selection import (
    agreement,
    labelled_draw,
    mix_seeds,
    stratified,
    top_k,
    top_k_quota,
)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    unlabelled=st.integers(0, 10),
    fraction=st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
)
def test_balanced_draw(counts: list[int], unlabelled: int, fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(-1, len(counts)), [unlabelled, *counts]).astype(np.int64)
    np.random.default_rng(seed).shuffle(labels)
    names = [str(c) for c in range(len(counts))]
    if round(fraction * sum(counts)) < 1:
        return
    drawn = labelled_draw(labels, fraction, seed, names)
    per_class = np.bincount(labels[drawn], minlength=len(counts))
    assert (np.diff(drawn) > 0).all()
    assert (labels[drawn] >= 0).all()
    assert len(drawn) == min(max(round(fraction * sum(counts)), len(counts)), sum(counts))
    assert per_class.min() >= 1
    # as even as possible: a class below the largest share gave all it has
    for taken, held in zip(per_class, counts, strict=True):
        assert taken >= per_class.max() - 1 or taken == held


def test_draw_depends_on_the_seed_and_on_nothing_else() -> None:
    labels = np.arange(200) % 4
    one = labelled_draw(labels, 0.1, 7, list("abcd"))
    np.random.seed(3)
    assert np.array_equal(one, labelled_draw(labels, 0.1, 7, list("abcd")))
    assert not np.array_equal(one, labelled_draw(labels, 0.1, 8, list("abcd")))


def test_uniform_draw_ignores_classes() -> None:
    labels = np.array([0] * 99 + [1] + [-1] * 20)
    drawn = labelled_draw(labels, 0.5, 0, ["a", "b"], balanced=False)
    assert len(drawn) == 50
    assert (labels[drawn] >= 0).all()


def test_a_class_without_labels_is_named() -> None:
    with pytest.raises(UserError, match="'b'"):
        labelled_draw(np.array([0, 0, -1, 2]), 0.5, 0, ["a", "b", "c"])


def test_a_fraction_that_gives_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"label_fraction 0\.01"):
        labelled_draw(np.zeros(10, dtype=np.int64), 0.01, 0, ["a"])


def test_agreement_is_of_all_judges() -> None:
    said = torch.tensor([[0, 1, 2, 0], [0, 1, 1, 0], [0, 2, 2, 0]])
    assert agreement(said).tolist() == [True, False, False, True]
    assert agreement(said[:1]).all()


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, float("nan")]), min_size=0, max_size=20),
    k=st.integers(0, 25),
    seed=st.integers(0, 99),
)
def test_top_k_breaks_ties_by_key(scores: list[float], k: int, seed: int) -> None:
    keys = np.random.default_rng(seed).permutation(len(scores))
    rank = [(-s if s == s else np.inf, key) for s, key in zip(scores, keys, strict=True)]
    expected = sorted(range(len(scores)), key=lambda i: rank[i])[:k]
    got = top_k(torch.tensor(scores), k, torch.from_numpy(keys))
    assert got.tolist() == expected


def test_quota_limits_each_label() -> None:
    score = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    label = torch.tensor([0, 0, 0, 1, 1])
    chosen = top_k_quota(score, 3, torch.arange(5), label, 2)
    assert chosen.tolist() == [0, 1, 3]
    assert top_k_quota(score, 5, torch.arange(5), label, 1).tolist() == [0, 3]


def test_mixed_seeds_fit_a_generator_and_differ() -> None:
    seeds = {mix_seeds(a, b) for a in range(10) for b in range(10)}
    assert len(seeds) == 100
    assert all(0 <= s < 2**63 for s in seeds)


def test_a_share_of_each_class() -> None:
    labels = np.array([0] * 40 + [1] * 5 + [2] + [-1] * 9)
    found = stratified(labels, 0.1, 0)
    assert np.bincount(labels[found]).tolist() == [4, 1, 1]
    assert found.tolist() == sorted(set(found.tolist()))
    assert found.tolist() == stratified(labels, 0.1, 0).tolist()
    assert found.tolist() != stratified(labels, 0.1, 1).tolist()
    assert labels[stratified(labels, 0.1, 0, leave=1)].tolist().count(2) == 0
    assert np.bincount(labels[stratified(labels, 1.0, 0, leave=1)]).tolist() == [39, 4]
    assert len(stratified(np.array([0, 1, -1]), 0.9, 0, leave=1)) == 0
