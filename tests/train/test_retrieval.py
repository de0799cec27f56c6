"""Retrieval: hand-computed ranks, and tiles that change nothing."""

from __future__ import annotations

import pytest
import torch

from outmodal.models.features import unit_norm
from outmodal.train.methods import align_report
from outmodal.train.retrieval import recall

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
    reported = align_report.retrieval(query, gallery, truth)
    assert recall(query, gallery, truth).items() >= reported.items()


def test_without_classes_or_samples() -> None:
    assert set(recall(QUERY, GALLERY, torch.full((4,), -1))) == {
        "r1_instance",
        "r5_instance",
        "r10_instance",
    }
    assert recall(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == {}
