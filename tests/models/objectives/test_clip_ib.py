"""CLIP + IB: CLIP's loss and the cosine distance of each pair."""

from __future__ import annotations

import itertools

import pytest
import torch

from outmodal.models.objectives import ClipConfig, ClipIbConfig
from tests.models.objectives.plain import agree, by_formula, clip, gaps, gradients, units


@pytest.mark.parametrize(("count", "beta"), [(2, 1.0), (4, 0.3)])
def test_adds_the_mean_distance_of_each_pair(count: int, beta: float) -> None:
    batch = units(count)
    objective = ClipIbConfig(beta=beta, learn_temperature=False).build(tuple(batch), 5)

    def formula(b: dict[str, torch.Tensor]) -> torch.Tensor:
        distances = [(1 - (x * y).sum(1)).mean() for x, y in itertools.combinations(b.values(), 2)]
        return clip(b, objective.scale()) + beta * torch.stack(distances).sum()

    agree(gradients(objective, batch), by_formula(batch, formula), rtol=1e-9, atol=1e-10)


def test_half_the_squared_distance_of_unit_vectors() -> None:
    batch = units(2)
    objective = ClipIbConfig(beta=2.0).build(tuple(batch), 5)
    extra = objective(batch).loss - ClipConfig().build(tuple(batch), 5)(batch).loss
    a, b = batch.values()
    torch.testing.assert_close(extra, (a - b).square().sum(1).mean())


def test_only_samples_with_both_are_drawn_together() -> None:
    batch = units(3, 12)
    present = gaps(tuple(batch), 12)
    objective = ClipIbConfig().build(tuple(batch), 5)
    found = gradients(objective, batch, present)
    for m, mask in present.items():
        alone = torch.stack([v for k, v in present.items() if k != m]).sum(0) == 0
        assert not found[m][~mask | alone].any()
        assert found[m][mask & ~alone].abs().sum(1).gt(0).all()


def test_the_score_is_the_mean_cosine() -> None:
    batch = units(2)
    got = ClipIbConfig().build(tuple(batch), 5).score({"sight": batch["sight"]}, batch["sound"], "")
    torch.testing.assert_close(got, batch["sight"] @ batch["sound"].T)
