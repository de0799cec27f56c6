"""Zero-shot classification: ranks and accuracies by hand."""

from __future__ import annotations

import pytest
import torch

from outmodal.models.prompts import class_prompts
from outmodal.train.zero_shot import (
    TEMPLATES,
    classification,
    nearest_classes,
    templates_for,
)


@pytest.mark.parametrize("kind", [*TEMPLATES, "text", "series", "vector"])
def test_every_kind_has_templates(kind: str) -> None:
    found = class_prompts(["cat"], templates_for(kind))
    assert len(set(found)) == len(found) >= 3
    assert all("cat" in prompt for prompt in found)


def test_accuracies_by_hand() -> None:
    # seven classes: rank of the true one is 0, 4, 5, 0 and unknown
    e = torch.tensor(
        [
            [9.0, 1, 2, 3, 4, 5, 6],
            [9.0, 8, 7, 6, 5, 4, 3],
            [9.0, 8, 7, 6, 5, 4, 3],
            [1.0, 1, 1, 1, 1, 1, 1],
            [9.0, 1, 1, 1, 1, 1, 1],
        ]
    )
    best = nearest_classes(e, torch.eye(7))
    assert best.tolist()[:2] == [[0, 6, 5, 4, 3], [0, 1, 2, 3, 4]]
    metrics, per_class = classification(best, torch.tensor([0, 4, 5, 0, -1]), "abcdefg")
    assert metrics == pytest.approx({"top1": 2 / 4, "top5": 3 / 4, "mean_per_class": 1 / 3})
    assert per_class == {"a": 1.0, "e": 0.0, "f": 0.0}
    assert classification(best, torch.full((5,), -1), "abcdefg") == ({}, {})


@pytest.mark.parametrize("tile", [1, 5, 11, 1000])
def test_tiles_change_nothing(tile: int) -> None:
    torch.manual_seed(0)
    e, classes = torch.randn(23, 6), torch.randn(4, 6)
    best = nearest_classes(e, classes, tile)
    assert best.shape == (23, 4)
    assert torch.equal(best, nearest_classes(e, classes))


def test_only_a_subset_is_chosen_among() -> None:
    e = torch.tensor([[9.0, 1, 2, 3], [1.0, 8, 9, 6]])
    best = nearest_classes(e, torch.eye(4), subset=(3, 1))
    assert best.tolist() == [[3, 1], [1, 3]]
