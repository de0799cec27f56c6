"""Symile against all tuples written out, its shuffles, and its masks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.objectives import Clip, ClipConfig, SymileConfig
from outmodal.models.objectives import symile as module
from outmodal.models.objectives.symile import shuffle
from tests.models.objectives.plain import (
    agree,
    by_formula,
    cross_entropy,
    gaps,
    gradients,
    rest_of,
    take,
    units,
)

SQUARED = SymileConfig(negatives="n_squared", learn_temperature=False, temperature=0.2)


def all_tuples(batch: Mapping[str, Tensor], scale: float) -> Tensor:
    """Mean over anchors of the cross-entropy among all tuples, the true one's logit apart."""
    losses = []
    rows = len(next(iter(batch.values())))
    for m, anchor in batch.items():
        rest = rest_of(batch, m)
        for n in range(rows):
            logits = torch.stack(
                [
                    scale
                    * torch.stack([anchor[n], *(r[i] for r, i in zip(rest, at, strict=True))])
                    .prod(0)
                    .sum()
                    for at in itertools.product(range(rows), repeat=len(rest))
                ]
            )
            own = list(itertools.product(range(rows), repeat=len(rest))).index((n,) * len(rest))
            losses.append(logits.logsumexp(0) - logits[own])
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("count", "rows"), [(2, 5), (3, 4), (4, 3)])
def test_n_squared_is_the_cross_entropy_among_all_tuples(count: int, rows: int) -> None:
    batch = units(count, rows)
    objective = SQUARED.build(tuple(batch), 5)
    expected = by_formula(batch, lambda b: all_tuples(b, objective.scale()))
    agree(gradients(objective, batch), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("count", [3, 4])
def test_n_shuffles_each_modality_by_itself(count: int) -> None:
    batch, step = units(count, 9), 3
    objective = SymileConfig(learn_temperature=False).build(tuple(batch), 5)
    names, whole = list(batch), torch.ones(9, dtype=torch.bool)

    def formula(b: dict[str, Tensor]) -> Tensor:
        losses = []
        for i, m in enumerate(names):
            others = [j for j in range(count) if j != i]
            orders = [shuffle(whole, (step * count + i) * count + j) for j in others]
            mixed = torch.stack([b[names[j]][o] for j, o in zip(others, orders, strict=True)]).prod(
                0
            )
            logits = objective.scale() * b[m] @ mixed.T
            true = objective.scale() * torch.stack(list(b.values())).prod(0).sum(1)
            losses.append(cross_entropy(torch.where(torch.eye(9).bool(), true[:, None], logits)))
        return torch.stack(losses).mean()

    got = gradients(objective, batch, step=step)
    agree(got, by_formula(batch, formula), rtol=1e-9, atol=1e-10)
    assert not torch.equal(objective(batch, step=4).loss, got["loss"])


def test_two_modalities_are_clip() -> None:
    batch = units(2)
    expected = gradients(ClipConfig().build(tuple(batch), 5), batch)
    got = gradients(SymileConfig().build(tuple(batch), 5), batch)
    agree(got, expected, rtol=1e-6, atol=1e-9)
    assert isinstance(ClipConfig().build(tuple(batch), 5), Clip)


@pytest.mark.parametrize("negatives", ["n", "n_squared"])
def test_only_whole_samples_take_part(negatives: str) -> None:
    batch = units(3, 12)
    present = gaps(tuple(batch), 12)
    whole = torch.stack(list(present.values())).all(0)
    config = SymileConfig.model_validate({"negatives": negatives, "learn_temperature": False})
    objective = config.build(tuple(batch), 5)
    noisy = {m: torch.where(present[m][:, None], t, torch.nan) for m, t in batch.items()}
    found = gradients(objective, noisy, present)
    for m in batch:
        assert not found[m][~whole].any()
        assert found[m][whole].isfinite().all()
    if negatives == "n_squared":
        torch.testing.assert_close(found["loss"], objective(take(batch, whole)).loss)


def test_shuffles_map_whole_rows_onto_whole_rows() -> None:
    whole = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1], dtype=torch.bool)
    seen = set()
    for seed in range(20):
        order = shuffle(whole, seed)
        assert sorted(order.tolist()) == list(range(8))
        assert torch.equal(whole[order], whole)
        assert torch.equal(order, shuffle(whole, seed))
        seen.add(tuple(order.tolist()))
    assert len(seen) > 10


def test_a_large_scale_stays_finite() -> None:
    batch = units(5, 16, 8, dtype=torch.float32)
    objective = SymileConfig(temperature=1e-5).build(tuple(batch), 8)
    found = gradients(objective, batch)
    assert all(t.isfinite().all() for t in found.values())


def test_too_many_tuples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ENTRIES", 300)
    batch = units(3, 8)
    with pytest.raises(UserError, match=r"each of 8 samples with 8\^2 tuples.*use 'n'"):
        SQUARED.build(tuple(batch), 5)(batch)


def test_the_score_is_the_multilinear_product() -> None:
    batch = units(3)
    query = {m: batch[m][:2] for m in ("sight", "touch")}
    got = SymileConfig().build(tuple(batch), 5).score(query, batch["sound"], "sound")
    expected = torch.einsum("qd,qd,cd->qc", query["sight"], query["touch"], batch["sound"])
    torch.testing.assert_close(got, expected)
