"""Pairwise CLIP against plain cross-entropy, and with missing modalities."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.models.objectives import Clip, ClipConfig
from tests.models.objectives.plain import agree, by_formula, clip, gaps, gradients, units

EXACT = {"rtol": 1e-6, "atol": 1e-9}  # the learned scale is an fp32 number


def make(count: int, **keys: object) -> Clip:
    names = tuple(units(count))
    return ClipConfig.model_validate(keys).build(names, 5)


@given(count=st.integers(2, 4), rows=st.integers(1, 9), inverse=st.floats(0.5, 99.0))
@settings(max_examples=15, deadline=None)
def test_is_the_sum_over_pairs_both_ways(count: int, rows: int, inverse: float) -> None:
    batch = units(count, rows)
    objective = make(count, temperature=1 / inverse, learn_temperature=False)
    expected = by_formula(batch, lambda b: clip(b, objective.scale()))
    agree(gradients(objective, batch), expected, rtol=1e-9, atol=1e-10)


def test_the_learned_scale_has_its_gradient() -> None:
    batch, objective = units(3), make(3)
    log_scale = torch.tensor(0.07, dtype=torch.float64).reciprocal().log().requires_grad_()
    expected = torch.autograd.grad(clip(batch, log_scale.exp()), log_scale)[0]
    got = gradients(objective, batch)["scale.log_scale"][0]
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0.0)


def test_a_sample_counts_for_the_pairs_it_has() -> None:
    batch = units(3, 12)
    present = gaps(tuple(batch), 12)
    objective = make(3, learn_temperature=False)

    def formula(b: dict[str, torch.Tensor]) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, j in itertools.combinations(b, 2):
            both = present[i] & present[j]
            total = total + clip({i: b[i][both], j: b[j][both]}, objective.scale())
        return total

    expected = by_formula(batch, formula)
    agree(gradients(objective, batch, present), expected, rtol=1e-9, atol=1e-10)


def test_half_precision_is_compared_in_fp32_even_under_autocast() -> None:
    batch = {m: t.bfloat16() for m, t in units(2, 16, 8).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make(2, temperature=0.01)(batch).loss
    assert loss.dtype == torch.float32
    expected = clip({m: t.double() for m, t in batch.items()}, 100.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0.0)


def test_terms_and_scale_are_logged() -> None:
    logs = make(3)(units(3)).logs
    pairs = {"loss/sight_sound", "loss/sight_touch", "loss/sound_touch"}
    assert set(logs) == {*pairs, "logit_scale"}
    assert logs["logit_scale"].item() == pytest.approx(1 / 0.07)


def test_the_score_is_the_mean_cosine() -> None:
    batch = units(3)
    query = {m: batch[m][:4] for m in ("sight", "sound")}
    expected = (query["sight"] @ batch["touch"].T + query["sound"] @ batch["touch"].T) / 2
    torch.testing.assert_close(make(3).score(query, batch["touch"], "touch"), expected)
