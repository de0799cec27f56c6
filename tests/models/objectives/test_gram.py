"""Gram against volumes by whole determinants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.objectives import GramConfig
from tests.models.objectives.plain import (
    agree,
    by_formula,
    cross_entropy,
    gaps,
    gradients,
    rest_of,
    take,
    tangent,
    units,
    volumes,
)

FIXED = {"learn_temperature": False}
# the volume's factors come from a Gram matrix with the ridge 1e-5
CLOSE = {"rtol": 2e-3, "atol": 2e-4}


def one_anchor(
    batch: dict[str, Tensor], anchor: str, scale: Tensor | float, smoothing: float
) -> Tensor:
    logits = -scale * volumes(batch[anchor], rest_of(batch, anchor))
    return (cross_entropy(logits, smoothing) + cross_entropy(logits.T, smoothing)) / 2


@pytest.mark.parametrize(("count", "smoothing"), [(2, 0.1), (3, 0.0), (3, 0.1), (5, 0.1)])
def test_is_the_mean_over_anchors_of_both_directions(count: int, smoothing: float) -> None:
    batch = units(count, 6, 8)
    objective = GramConfig(smoothing=smoothing, **FIXED).build(tuple(batch), 8)

    def formula(b: dict[str, Tensor]) -> Tensor:
        losses = [one_anchor(b, m, objective.scale(), smoothing) for m in b]
        return torch.stack(losses).mean()

    got, expected = gradients(objective, batch), by_formula(batch, formula)
    agree(tangent(got, batch), tangent(expected, batch), **CLOSE)


def test_one_anchor_can_be_named() -> None:
    batch = units(3, 6, 8)
    objective = GramConfig(anchor="sound", **FIXED).build(tuple(batch), 8)
    expected = by_formula(batch, lambda b: one_anchor(b, "sound", objective.scale(), 0.1))
    agree(tangent(gradients(objective, batch), batch), tangent(expected, batch), **CLOSE)
    with pytest.raises(UserError, match="'sond', which is not aligned; did you mean 'sound'"):
        GramConfig(anchor="sond").build(tuple(batch), 8)


def test_the_temperature_is_learned_from_7_hundredths() -> None:
    batch = units(3, 6, 8)
    objective = GramConfig().build(tuple(batch), 8)
    log_scale = torch.tensor(-math.log(0.07), dtype=torch.float64, requires_grad=True)
    loss = torch.stack([one_anchor(batch, m, log_scale.exp(), 0.1) for m in batch]).mean()
    expected = torch.autograd.grad(loss, log_scale)[0]
    got = gradients(objective, batch)["scale.log_scale"][0]
    torch.testing.assert_close(got.double(), expected, rtol=CLOSE["rtol"], atol=CLOSE["atol"])


def test_a_missing_modality_is_left_out_of_the_volume() -> None:
    batch = units(3, 8, 8)
    objective = GramConfig(**FIXED).build(tuple(batch), 8)
    absent = {m: torch.full((8,), m != "touch") for m in batch}
    pair = {m: batch[m] for m in ("sight", "sound")}
    expected = gradients(GramConfig(**FIXED).build(tuple(pair), 8), pair)
    noisy = {**batch, "touch": torch.full_like(batch["touch"], torch.nan)}
    found = gradients(objective, noisy, absent)
    agree(found, expected, rtol=1e-6, atol=1e-8)
    assert not found["touch"].any()


def test_a_sample_with_one_modality_takes_no_part() -> None:
    batch = units(3, 12)
    present = gaps(tuple(batch), 12)
    alone = torch.stack(list(present.values())).sum(0) < 2
    assert alone.any()
    objective = GramConfig(**FIXED).build(tuple(batch), 5)
    expected = objective(take(batch, ~alone), take(present, ~alone)).loss
    torch.testing.assert_close(objective(batch, present).loss, expected)


def test_identical_vectors_have_finite_gradients() -> None:
    one = units(1, 6, 8)["sight"]
    batch = {m: one.clone() for m in ("sight", "sound", "touch")}
    found = gradients(GramConfig().build(tuple(batch), 8), batch)
    assert all(t.isfinite().all() for t in found.values())


def test_the_score_is_minus_the_volume() -> None:
    batch = units(4, 6, 8)
    query = {m: batch[m][:3] for m in ("sight", "sound", "smell")}
    got = GramConfig().build(tuple(batch), 8).score(query, batch["touch"], "touch")
    expected = -volumes(batch["touch"], list(query.values())).T
    assert got.shape == (3, 6)
    torch.testing.assert_close(got, expected, rtol=CLOSE["rtol"], atol=CLOSE["atol"])
