"""OVA-IB against its formulas with brute-force projectors, and the identities of its terms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.models.objectives import OvaIb, OvaIbConfig
from tests.models.objectives.plain import (
    agree,
    by_formula,
    cross_entropy,
    gaps,
    gradients,
    projector,
    rest_of,
    take,
    units,
)

LAMBDA = 1e-5
EXACT = {"rtol": 1e-6, "atol": 1e-8}


def make(batch: Mapping[str, Tensor], **keys: object) -> OvaIb:
    dim = next(iter(batch.values())).shape[1]
    return OvaIbConfig.model_validate({"temperature": 0.1, **keys}).build(tuple(batch), dim)


def energies(anchor: Tensor, rest: list[Tensor], ridge: float = LAMBDA) -> Tensor:
    """[A, B] sqrt(e^T P e) of anchor i and the subspace of sample j."""
    squared = torch.einsum("id,jde,ie->ij", anchor, projector(rest, ridge), anchor)
    return (squared + 1e-12).sqrt()


def sufficiency(
    batch: Mapping[str, Tensor], scale: Tensor | float, ridge: float = LAMBDA
) -> Tensor:
    losses = [
        cross_entropy(scale * energies(e, rest_of(batch, m), ridge)) for m, e in batch.items()
    ]
    return torch.stack(losses).mean()


def minimality(batch: Mapping[str, Tensor]) -> Tensor:
    gaps_ = [
        (e - torch.stack(rest_of(batch, m)).mean(0)).square().sum(1).mean()
        for m, e in batch.items()
    ]
    return torch.stack(gaps_).mean()


@pytest.mark.parametrize(("count", "beta"), [(3, 1.0), (4, 0.5), (6, 1.0)])
def test_is_sufficiency_plus_beta_times_minimality(count: int, beta: float) -> None:
    batch = units(count, 7, 9)
    objective = make(batch, beta=beta)
    expected = by_formula(batch, lambda b: sufficiency(b, 10.0) + beta * minimality(b))
    agree(gradients(objective, batch), expected, **EXACT)
    logs = objective(batch).logs
    torch.testing.assert_close(logs["loss/minimality"], minimality(batch))
    torch.testing.assert_close(logs["loss/sufficiency"], sufficiency(batch, 10.0))
    assert logs["logit_scale"].item() == pytest.approx(10.0)


def test_two_modalities_score_by_the_cosine_or_its_absolute_value() -> None:
    batch = units(2)
    cosine = 10.0 * batch["sight"] @ batch["sound"].T
    for signed, logits in ((True, cosine), (False, cosine.abs())):
        got = make(batch, m2_signed=signed, beta=0.0, ridge_floor=0.0)(batch).loss
        expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
        torch.testing.assert_close(got, expected)


def test_energy_and_projector_forms_agree_without_ridge() -> None:
    batch = units(4, 6, 9)
    rest = rest_of(batch, "sight")
    lengths = torch.einsum("jde,ie->ijd", projector(rest), batch["sight"]).norm(dim=2)
    torch.testing.assert_close(energies(batch["sight"], rest, 0.0), lengths)
    objective = make(batch, beta=0.0, ridge_floor=0.0)
    torch.testing.assert_close(
        objective(batch).loss, sufficiency(batch, 10.0, 1e-8), rtol=1e-7, atol=0.0
    )


@given(count=st.integers(2, 6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_identities_of_minimality(count: int, seed: int) -> None:
    batch = units(count, 5, 6, seed)
    vectors = torch.stack(list(batch.values()))
    got = make(batch)(batch).logs["loss/minimality"]
    spread = (count / (count - 1)) ** 2 * (1 - vectors.mean(0).square().sum(1)).mean()
    pairs = torch.stack([(a - b).square().sum(1) for a in vectors for b in vectors]).sum(0) / 2
    torch.testing.assert_close(got, spread)
    torch.testing.assert_close(got, pairs.mean() / (count - 1) ** 2)
    if count == 2:
        torch.testing.assert_close(got, (2 - 2 * (vectors[0] * vectors[1]).sum(1)).mean())


def test_minimality_on_raw_embeddings_feels_their_length() -> None:
    batch = units(3)
    raw = {m: 2.0 * t for m, t in batch.items()}
    objective = make(batch, minimality_on="raw")
    got = objective(batch, raw=raw).logs["loss/minimality"]
    torch.testing.assert_close(got, 4 * minimality(batch))
    with pytest.raises(UserError, match="minimality_on 'raw' needs the embeddings before"):
        objective(batch)


def test_a_modality_that_a_sample_lacks_is_left_out() -> None:
    batch = units(3, 8, 9)
    present = gaps(tuple(batch), 8, seed=3)
    absent = {m: torch.full((8,), m != "touch") for m in batch}
    pair = {m: batch[m] for m in ("sight", "sound")}
    noisy = {**batch, "touch": torch.full_like(batch["touch"], torch.nan)}
    found = gradients(make(batch), noisy, absent)
    agree(found, gradients(make(pair, m2_signed=False), pair), **EXACT)
    assert not found["touch"].any()
    alone = torch.stack(list(present.values())).sum(0) < 2
    for keys in ({}, {"negatives": "own_projection"}, {"projector": "mlp"}):
        torch.manual_seed(0)
        objective = make(batch, **keys)
        expected = objective.double()(take(batch, ~alone), take(present, ~alone)).loss
        torch.testing.assert_close(objective(batch, present).loss, expected)


def test_reading_a_projects_the_columns_own_vector() -> None:
    batch = units(3, 7, 9)

    def formula(b: dict[str, Tensor]) -> Tensor:
        losses = []
        for m, e in b.items():
            own = torch.einsum("jde,je->jd", projector(rest_of(b, m), LAMBDA), e)
            losses.append(cross_entropy(10.0 * e @ F.normalize(own, dim=1).T))
        return torch.stack(losses).mean() + minimality(b)

    got = gradients(make(batch, negatives="own_projection"), batch)
    agree(got, by_formula(batch, formula), **EXACT)


def test_the_mlp_projector_is_compared_by_the_cosine() -> None:
    batch = units(3, 7, 9)
    torch.manual_seed(0)
    objective = make(batch, projector="mlp").double()
    assert objective.projectors is not None

    def formula(b: dict[str, Tensor]) -> Tensor:
        losses = []
        for mlp, (m, e) in zip(objective.projectors or (), b.items(), strict=True):
            out = F.normalize(mlp(torch.cat(rest_of(b, m), dim=1)), dim=1)
            losses.append(cross_entropy(10.0 * e @ out.T))
        return torch.stack(losses).mean() + minimality(b)

    found = gradients(objective, batch)
    agree(found, by_formula(batch, formula), **EXACT)
    assert all(g.abs().sum() > 0 for k, g in found.items() if k.endswith("weight"))


def test_excluding_the_positive_leaves_the_denominator_without_it() -> None:
    batch = units(3, 7, 9)
    logits = [10.0 * energies(e, rest_of(batch, m)) for m, e in batch.items()]
    mask = torch.eye(7).bool()
    expected = [
        (x.masked_fill(mask, -torch.inf).logsumexp(1) - x.diagonal()).mean() for x in logits
    ]
    got = make(batch, exclude_positive=True, beta=0.0)(batch).loss
    torch.testing.assert_close(
        got, torch.stack(expected).mean(), rtol=EXACT["rtol"], atol=EXACT["atol"]
    )


def test_the_paper_preset() -> None:
    paper = OvaIbConfig(fidelity="paper").resolved()
    assert (paper.ridge_floor, paper.exclude_positive) == (0.0, True)
    assert (paper.minimality_on, paper.m2_signed) == ("raw", False)
    kept = OvaIbConfig(fidelity="paper", exclude_positive=False).resolved()
    assert kept.exclude_positive is False
    rec = OvaIbConfig().resolved()
    assert (rec.ridge_floor, rec.exclude_positive) == (1e-5, False)
    assert (rec.temperature, rec.learn_temperature, rec.beta, rec.ridge) == (0.01, False, 1.0, 1e-8)


def test_stays_finite_in_fp32_where_two_modalities_coincide() -> None:
    batch = units(3, 64, 256, dtype=torch.float32)
    nudge = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) * 1e-6 / 16
    batch["touch"] = F.normalize(batch["sound"] + nudge, dim=1)
    found = gradients(make(batch), batch)
    assert all(t.isfinite().all() and t.norm() < 50 for t in found.values())
    assert make(batch)(batch).logs["min_gram_eigenvalue"].item() < 1e-6


def test_independent_modalities_are_not_told_apart() -> None:
    g = torch.Generator().manual_seed(0)
    batch = {m: F.normalize(torch.randn(64, 16, generator=g), dim=1) for m in "abc"}
    loss = make(batch, temperature=1.0, beta=0.0)(batch).loss
    assert loss.item() > math.log(64) - 0.05


def test_the_smallest_eigenvalue_is_that_of_the_facing_groups() -> None:
    batch = units(4, 6, 9)
    lowest = min(
        torch.linalg.eigvalsh(torch.stack(rest, 1) @ torch.stack(rest, 1).mT).min()
        for rest in (rest_of(batch, m) for m in batch)
    )
    got = make(batch)(batch).logs["min_gram_eigenvalue"]
    torch.testing.assert_close(got.double(), lowest, rtol=0.02, atol=1e-6)


def test_the_score_is_the_length_on_the_querys_subspace() -> None:
    batch = units(4, 6, 9)
    query = {m: batch[m][:3] for m in ("sight", "sound", "smell")}
    got = make(batch).score(query, batch["touch"], "touch")
    expected = energies(batch["touch"], list(query.values())).T
    torch.testing.assert_close(got, expected, rtol=EXACT["rtol"], atol=EXACT["atol"])
    one = {"sight": batch["sight"]}
    cosine = batch["sight"] @ batch["touch"].T
    torch.testing.assert_close(make(batch).score(one, batch["touch"], "touch"), cosine)
    unsigned = make(batch, m2_signed=False).score(one, batch["touch"], "touch")
    torch.testing.assert_close(unsigned, cosine.abs(), rtol=1e-4, atol=1e-6)


def test_the_mlps_score_takes_zeros_for_what_is_not_asked_with() -> None:
    batch = units(3)
    objective = make(batch, projector="mlp").double()
    assert objective.projectors is not None
    both = {m: batch[m][:2] for m in ("touch", "sight")}
    ordered = torch.cat([both["sight"], both["touch"]], dim=1)
    expected = F.normalize(objective.projectors[1](ordered), dim=1) @ batch["sound"].T
    torch.testing.assert_close(objective.score(both, batch["sound"], "sound"), expected)
    part = objective.score({"touch": both["touch"]}, batch["sound"], "sound")
    zeros = {"sight": torch.zeros_like(both["sight"]), "touch": both["touch"]}
    torch.testing.assert_close(part, objective.score(zeros, batch["sound"], "sound"))
