"""What every objective does with bad or missing input, and across ranks."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.kernels.exchange import Exchange
from outmodal.models.objectives import AnyObjectiveConfig, Objective, ObjectiveConfig
from tests.models.kernels.ranks import on_ranks
from tests.models.objectives.plain import gaps, gradients, take, units

ADAPTER: TypeAdapter[AnyObjectiveConfig] = TypeAdapter(ObjectiveConfig)
VARIANTS: dict[str, dict[str, object]] = {
    "clip": {"name": "clip"},
    "clip_ib": {"name": "clip_ib"},
    "siglip": {"name": "siglip"},
    "symile": {"name": "symile"},
    "symile_squared": {"name": "symile", "negatives": "n_squared"},
    "gram": {"name": "gram"},
    "triangle": {"name": "triangle"},
    "triangle_root": {"name": "triangle", "area": "root"},
    "ova_ib": {"name": "ova_ib"},
    "ova_ib_mlp": {"name": "ova_ib", "projector": "mlp"},
    "ova_ib_paper": {"name": "ova_ib", "fidelity": "paper"},
    "ova_ib_own": {"name": "ova_ib", "negatives": "own_projection"},
}
WHOLE_SAMPLES = ("symile", "symile_squared", "triangle", "triangle_root")


def make(variant: str, batch: dict[str, Tensor]) -> Objective:
    torch.manual_seed(0)
    dim = next(iter(batch.values())).shape[1]
    objective = ADAPTER.validate_python(VARIANTS[variant]).build(tuple(batch), dim)
    return objective.double() if next(iter(batch.values())).dtype is torch.float64 else objective


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_vectors_that_are_not_unit_ones_are_named(variant: str) -> None:
    batch = units(3)
    objective = make(variant, batch)
    batch["sound"] = 3.0 * batch["sound"]
    with pytest.raises(UserError, match=r"modality 'sound'.*length 3, unit vectors are required"):
        objective(batch, raw=batch)
    assert objective(batch, raw=batch, step=1).loss.dtype == torch.float64  # not looked at


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_nan_is_named_in_a_checked_step_and_stays_nan_in_others(variant: str) -> None:
    batch = units(3)
    objective = make(variant, batch)
    batch["touch"] = batch["touch"].clone()
    batch["touch"][4, 1] = torch.nan
    for step in (0, 1000):
        with pytest.raises(UserError, match=r"modality 'touch'.*row 4 .*NaN or infinite entries"):
            objective(batch, raw=batch, step=step)
    found = gradients(objective, batch)
    assert not all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_numbers_of_samples_that_differ_are_named(variant: str) -> None:
    batch = units(3)
    objective = make(variant, batch)
    short = {**batch, "touch": batch["touch"][:5]}
    with pytest.raises(UserError, match="modality 'touch' has 5 rows, 'sight' has 7"):
        objective(short, step=1)
    narrow = {**batch, "sound": batch["sound"][:, :4]}
    with pytest.raises(UserError, match="modality 'sound' has 4 dimensions"):
        objective(narrow, step=1)
    with pytest.raises(UserError, match="no embeddings of modality 'sight' were given"):
        objective({m: t for m, t in batch.items() if m != "sight"}, step=1)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_masks_that_do_not_fit_are_named(variant: str) -> None:
    batch = units(3)
    objective = make(variant, batch)
    full = {m: torch.ones(7, dtype=torch.bool) for m in batch}
    for wrong in (full["touch"][:5], full["touch"].float()):
        with pytest.raises(UserError, match=r"modality 'touch': `present` must be bool \[7\]"):
            objective(batch, {**full, "touch": wrong}, step=1)
    with pytest.raises(UserError, match="no mask of modality 'sight'"):
        objective(batch, {m: t for m, t in full.items() if m != "sight"}, step=1)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_one_modality_only_is_refused(variant: str) -> None:
    with pytest.raises(UserError, match=r"got 1: sight.*method\.modalities"):
        make(variant, units(1))


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_modality_named_twice_is_refused(variant: str) -> None:
    config = ADAPTER.validate_python(VARIANTS[variant])
    with pytest.raises(UserError, match="names a modality twice"):
        config.build(("sight", "sound", "sight"), 5)


@pytest.mark.parametrize("variant", ["gram", "ova_ib", "ova_ib_own"])
def test_more_than_six_modalities_are_refused_where_subspaces_end(variant: str) -> None:
    config = ADAPTER.validate_python(VARIANTS[variant])
    with pytest.raises(UserError, match="at most 6 modalities, got 7: a, b"):
        config.build(tuple("abcdefg"), 5)


@pytest.mark.parametrize("variant", ["clip", "clip_ib", "siglip", "symile", "ova_ib_mlp"])
def test_others_take_seven(variant: str) -> None:
    names = tuple("abcdefg")
    batch = dict(zip(names, [*units(6).values(), *units(1, seed=5).values()], strict=True))
    assert make(variant, batch)(batch).loss.isfinite()


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_modality_that_no_sample_has(variant: str) -> None:
    """Objectives of whole samples are then a zero attached to the graph; others are those of the
    modalities that there are."""
    batch = units(3)
    objective = make(variant, batch)
    present = {m: torch.full((7,), m != "touch") for m in batch}
    found = gradients(objective, {**batch, "touch": 9.0 * batch["touch"]}, present)
    assert not found["touch"].any()
    assert all(t.isfinite().all() for t in found.values())
    if variant in WHOLE_SAMPLES:
        assert not any(t.any() for t in found.values())
    else:
        assert found["loss"].item() > 0
        assert found["sight"].any()


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_no_sample_at_all_is_a_zero_with_zero_gradients(variant: str) -> None:
    batch = units(3)
    nothing = {m: torch.zeros(7, dtype=torch.bool) for m in batch}
    found = gradients(make(variant, batch), batch, nothing)
    assert not any(t.any() for t in found.values())


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_one_sample_has_nothing_to_be_told_from(variant: str) -> None:
    batch = take(units(3), torch.tensor([0]))
    found = gradients(make(variant, batch), batch)
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_fp16_vectors_are_taken_and_an_overflow_is_named(variant: str) -> None:
    batch = {m: t.half() for m, t in units(3, dtype=torch.float32).items()}
    objective = make(variant, batch)
    out = objective(batch, raw=batch)
    assert out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    batch["sight"] = batch["sight"] * torch.tensor(65000.0).half() * 2
    with pytest.raises(UserError, match=r"modality 'sight'.*NaN or infinite entries"):
        objective(batch, raw=batch)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_implementation_gives_the_same(variant: str) -> None:
    batch = units(3, 9, 6)
    expected = gradients(make(variant, batch), batch)
    torch.manual_seed(0)
    keys = {**VARIANTS[variant], "impl": "reference"}
    plain = ADAPTER.validate_python(keys).build(tuple(batch), 6).double()
    for key, value in gradients(plain, batch).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-8, msg=key)


ROWS = [4, 0, 1, 2]  # of each rank


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_uneven_ranks_equal_one_process(variant: str) -> None:
    batch = units(3)
    present = gaps(tuple(batch), 7)
    whole = gradients(make(variant, batch), batch, present)
    objectives = [make(variant, batch) for _ in ROWS]
    parts = {m: torch.split(t, ROWS) for m, t in batch.items()}
    masks = {m: torch.split(t, ROWS) for m, t in present.items()}

    def work(exchange: Exchange, rank: int) -> dict[str, Tensor]:
        mine, held = ({m: t[rank] for m, t in side.items()} for side in (parts, masks))
        return gradients(objectives[rank], mine, held, exchange=exchange)

    ranks = on_ranks(len(ROWS), work)
    for key, expected in whole.items():
        each = [found[key] for found in ranks]
        got = torch.cat(each) / len(ROWS) if key in batch else torch.stack(each).mean(0)
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9, msg=key)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_all_ranks_refuse_what_one_refuses(variant: str) -> None:
    batch = units(3)
    batch["touch"][-1, 0] = torch.nan
    objectives = [make(variant, batch) for _ in ROWS]
    parts = {m: torch.split(t, ROWS) for m, t in batch.items()}

    def work(exchange: Exchange, rank: int) -> str:
        mine = {m: t[rank] for m, t in parts.items()}
        with pytest.raises(UserError) as refused:
            objectives[rank](mine, exchange=exchange, raw=mine)
        return str(refused.value)

    messages = on_ranks(len(ROWS), work)
    assert all("modality 'touch'" in m for m in messages)
    assert "row 1 (1 such of 2) has NaN" in messages[-1]
