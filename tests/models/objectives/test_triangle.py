"""TRIANGLE against areas of triangles in space."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.objectives import TriangleConfig
from tests.models.objectives.plain import (
    agree,
    areas,
    by_formula,
    cross_entropy,
    gaps,
    gradients,
    rest_of,
    take,
    tangent,
    units,
)

FIXED = {"learn_temperature": False}


def score(area: str, a: Tensor, rest: list[Tensor]) -> Tensor:
    plain = areas(a, *rest)
    return plain if area == "root" else 2 * plain.square()


@pytest.mark.parametrize("area", ["code", "root"])
@pytest.mark.parametrize("anchor", [None, "touch"])
def test_is_the_cross_entropy_of_areas_both_ways(area: str, anchor: str | None) -> None:
    batch = units(3, 6)
    keys = {"area": area, "anchor": anchor, "smoothing": 0.1, **FIXED}
    objective = TriangleConfig.model_validate(keys).build(tuple(batch), 5)

    def formula(b: dict[str, Tensor]) -> Tensor:
        losses = []
        for m in [anchor] if anchor else b:
            logits = -objective.scale() * score(area, b[m], rest_of(b, m))
            losses.append((cross_entropy(logits, 0.1) + cross_entropy(logits.T, 0.1)) / 2)
        return torch.stack(losses).mean()

    got, expected = gradients(objective, batch), by_formula(batch, formula)
    agree(tangent(got, batch), tangent(expected, batch), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("area", ["code", "root"])
def test_only_whole_samples_take_part(area: str) -> None:
    batch = units(3, 12)
    present = gaps(tuple(batch), 12)
    whole = torch.stack(list(present.values())).all(0)
    config = TriangleConfig.model_validate({"area": area, **FIXED})
    objective = config.build(tuple(batch), 5)
    noisy = {m: torch.where(present[m][:, None], t, torch.nan) for m, t in batch.items()}
    found, expected = gradients(objective, noisy, present), gradients(objective, take(batch, whole))
    torch.testing.assert_close(found["loss"], expected["loss"])
    for m in batch:
        torch.testing.assert_close(found[m][whole], expected[m])
        assert not found[m][~whole].any()


@pytest.mark.parametrize("area", ["code", "root"])
def test_the_temperature_is_learned(area: str) -> None:
    batch = units(3, 6)
    objective = TriangleConfig.model_validate({"area": area}).build(tuple(batch), 5)
    assert gradients(objective, batch)["scale.log_scale"].abs().item() > 1e-3


@pytest.mark.parametrize("count", [2, 4])
def test_other_numbers_of_modalities_are_refused(count: int) -> None:
    message = f"defined for 3 modalities only, got {count}.*method.modalities"
    with pytest.raises(UserError, match=message):
        TriangleConfig().build(tuple(units(count)), 5)


@pytest.mark.parametrize("area", ["code", "root"])
def test_the_score_is_minus_the_area(area: str) -> None:
    batch = units(3, 6)
    objective = TriangleConfig.model_validate({"area": area}).build(tuple(batch), 5)
    for target in batch:
        query = {m: t[:4] for m, t in batch.items() if m != target}
        expected = -score(area, batch[target], list(query.values())).T
        got = objective.score(query, batch[target], target)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    one, two = itertools.islice(batch, 2)
    alone = objective.score({one: batch[one]}, batch[two], two)
    torch.testing.assert_close(alone, batch[one] @ batch[two].T)
