"""Retrieval: hand-computed ranks, tiles that change nothing, scorers, queries of several
modalities, and small pools."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

from outmodal.models.features import unit_norm
from outmodal.train.methods import align_report
from outmodal.train.retrieval import (
    mean_cosine,
    recall,
    recall_by,
    recall_in_pools,
    score_by,
)

GALLERY = torch.eye(4)
QUERY = torch.tensor(  # similarities themselves, as the gallery is the identity
    [
        [4.0, 3.0, 2.0, 1.0],  # finds 0 1 2 3
        [4.0, 1.0, 3.0, 2.0],  # finds 0 2 3 1
        [1.0, 3.0, 2.0, 4.0],  # finds 3 1 2 0
        [2.0, 2.0, 2.0, 2.0],  # ties: 0 1 2 3
    ]
)
TRUTH = torch.tensor([0, 0, 1, -1])


def test_recall_and_precision_by_hand() -> None:
    found = recall(QUERY, GALLERY, TRUTH, ks=(1, 2, 3, 10))
    assert found == pytest.approx(
        {
            "r1_instance": 1 / 4,
            "r2_instance": 1 / 4,
            "r3_instance": 2 / 4,
            "r10_instance": 1.0,
            "map_instance": (1 + 1 / 4 + 1 / 3 + 1 / 4) / 4,
            "r1_class": 2 / 3,
            "r2_class": 2 / 3,
            "r3_class": 1.0,
            "r10_class": 1.0,
            "map_class": (1 + (1 + 2 / 4) / 2 + 1 / 3) / 3,
        }
    )


@pytest.mark.parametrize("tile", [1, 4, 7, 12, 1000])
def test_tiles_change_nothing(tile: int) -> None:
    assert recall(QUERY, GALLERY, TRUTH, tile=tile) == recall(QUERY, GALLERY, TRUTH)
    torch.manual_seed(0)
    query, gallery = unit_norm(torch.randn(53, 8)), unit_norm(torch.randn(53, 8))
    truth = torch.randint(-1, 4, (53,))
    assert recall(query, gallery, truth, tile=tile * 10) == recall(query, gallery, truth)


def test_no_tile_is_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = torch.Tensor.sort

    def sort(self: torch.Tensor, **options: object) -> object:
        sizes.append(self.numel())
        return original(self, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.Tensor, "sort", sort)
    recall(torch.randn(50, 4), torch.randn(50, 4), torch.zeros(50, dtype=torch.int64), tile=220)
    assert sizes == [200] * 12 + [100]


def test_equal_to_what_runs_report() -> None:
    torch.manual_seed(1)
    query, gallery = unit_norm(torch.randn(40, 6)), unit_norm(torch.randn(40, 6))
    truth = torch.randint(-1, 3, (40,))
    reported = align_report.retrieval(lambda q, c: query[q] @ gallery[c].T, truth)
    assert recall(query, gallery, truth).items() >= reported.items()


def test_without_classes_or_samples() -> None:
    assert set(recall(QUERY, GALLERY, torch.full((4,), -1))) == {
        "r1_instance",
        "r5_instance",
        "r10_instance",
        "map_instance",
    }
    assert recall(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == {}


def units(count: int, *names: str) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {name: unit_norm(torch.randn(count, 6)) for name in names}


def test_a_query_of_several_modalities_is_scored_by_the_scorer() -> None:
    e = units(40, "a", "b", "c")

    def product(query: Mapping[str, Tensor], candidates: Tensor, target: str) -> Tensor:
        assert target == "c"
        return (query["a"] * query["b"]) @ candidates.T

    truth = torch.full((40,), -1)
    found = recall_by(score_by(product, e, ("a", "b"), "c"), 40, truth)
    assert found == recall(e["a"] * e["b"], e["c"], truth)
    mean = recall_by(score_by(mean_cosine, e, ("a", "b"), "c"), 40, truth)
    assert mean == recall((e["a"] + e["b"]) / 2, e["c"], truth)


@pytest.mark.parametrize("tile", [1, 90, 500])
def test_a_scorer_never_sees_more_rows_than_the_tile(tile: int) -> None:
    e = units(30, "a", "b", "c")
    rows: list[int] = []

    def counted(query: Mapping[str, Tensor], candidates: Tensor, target: str) -> Tensor:
        rows.append(len(query["a"]))
        return mean_cosine(query, candidates, target)

    truth = torch.zeros(30, dtype=torch.int64)
    found = recall_by(score_by(counted, e, ("a", "b"), "c"), 30, truth, tile=tile, width=2)
    assert max(rows) == max(1, tile // 60)
    assert sum(rows) == 30
    assert found == recall_by(score_by(mean_cosine, e, ("a", "b"), "c"), 30, truth)


def test_nan_is_the_lowest_score() -> None:
    similarity = torch.eye(3)
    similarity[0] = torch.nan
    similarity[1, 2] = torch.nan

    def score(query: Tensor, candidates: Tensor) -> Tensor:
        return similarity[query][:, candidates]

    found = recall_by(score, 3, torch.full((3,), -1), ks=(1,))
    assert found["r1_instance"] == 1.0  # all equal: the earlier item, which is the partner
    similarity[1] = torch.tensor([0.1, torch.nan, torch.nan])
    assert recall_by(score, 3, torch.full((3,), -1), ks=(1,))["r1_instance"] == pytest.approx(2 / 3)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 40), pool=st.integers(1, 50), seed=st.integers(0, 9))
def test_pools_hold_the_partner_and_every_query_counts_once(
    count: int, pool: int, seed: int
) -> None:
    asked: list[list[int]] = []

    def score(query: Tensor, candidates: Tensor) -> Tensor:
        assert torch.equal(query, candidates)
        assert len(candidates) == min(pool, count)
        asked.append(query.tolist())
        return (query[:, None] == candidates[None, :]).float()

    found = recall_in_pools(score, count, pool, seed, ks=(1,))
    assert found == {f"r1_pool{pool}": 1.0, f"map_pool{pool}": 1.0}
    assert {i for members in asked for i in members} == set(range(count))
    assert len(asked) == -(-count // min(pool, count))


def test_a_pool_of_all_is_the_whole_split() -> None:
    e = units(50, "a", "b")
    score = score_by(mean_cosine, e, ("a",), "b")
    truth = torch.full((50,), -1)
    everyone, pooled = recall_by(score, 50, truth), recall_in_pools(score, 50, 64)
    assert pooled["map_pool64"] == pytest.approx(everyone["map_instance"])
    assert pooled["r5_pool64"] == pytest.approx(everyone["r5_instance"])
    assert recall_in_pools(score, 50, 10)["map_pool10"] > everyone["map_instance"]
    assert recall_in_pools(score, 50, 10, seed=1) != recall_in_pools(score, 50, 10)
    assert recall_in_pools(score, 0, 10) == {}


def test_the_metrics_are_those_of_scikit_learn_and_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    query = unit_norm(torch.randn(40, 6, generator=generator))
    gallery = unit_norm(query + 0.9 * torch.randn(40, 6, generator=generator))
    truth = torch.randint(0, 5, (40,), generator=generator)
    found, scores = recall(query, gallery, truth), query @ gallery.T
    same = truth[:, None] == truth[None, :]
    by_hand = [average_precision_score(same[i].numpy(), scores[i].numpy()) for i in range(40)]
    assert found["map_class"] == pytest.approx(sum(by_hand) / 40)
    partner = torch.eye(40, dtype=torch.bool)
    expected = label_ranking_average_precision_score(partner.numpy(), scores.numpy())
    assert found["map_instance"] == pytest.approx(expected)
    number = torch.arange(40)[:, None].expand(40, 40).flatten()
    for relevant, kind in ((same, "class"), (partner, "instance")):
        flat = ((scores + 2.0).flatten(), relevant.flatten())  # it counts positive scores only
        assert found[f"map_{kind}"] == pytest.approx(float(RetrievalMAP()(*flat, number)), rel=1e-5)
        for k in (1, 5, 10):
            peer = RetrievalHitRate(top_k=k)(*flat, number)
            assert found[f"r{k}_{kind}"] == pytest.approx(float(peer))
