"""Ablations and sweeps of COX, its presets in both settings, and data that it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from outmodal.errors import UserError
from outmodal.train.methods import CoxConfig
from outmodal.train.methods.cox import Cox
from outmodal.train.methods.cox_config import PRESETS, CoxChoices
from tests.train.methods.fakes import Passes, make_context, make_world
from tests.train.methods.test_cox import SMALL, make, step, with_sets


def test_a_share_of_the_known_data_is_drawn_evenly_and_used_alone() -> None:
    world = make_world()
    method = make(world, epochs=3, known_fraction=0.25)
    rows = method.known_rows
    assert rows is not None
    assert len(rows) == 100
    assert np.bincount(world.labels["train"][rows]).tolist() == [25] * 4
    known = next(s for s in method.streams("warmup") if s.name == "known")
    assert np.array_equal(known.select, rows)
    hidden = np.setdiff1d(np.arange(400), np.union1d(rows, method.supervision.labelled))
    other = make_world()
    for m in ("image", "text"):
        other.x["train"][m][hidden] = 1e3
    logs = method.on_epoch_start(2, "explore", Passes(world, method))
    assert logs == make(other, epochs=3, known_fraction=0.25).on_epoch_start(
        2, "explore", Passes(other, make(other, epochs=3, known_fraction=0.25))
    )


def test_the_known_share_grows_around_the_labelled_pairs() -> None:
    """So that no known feature beyond the share is used, where it is not below the pairs' own."""
    world = make_world()
    rows = [
        set(make(world, epochs=3, known_fraction=f).known_rows.tolist())  # type: ignore[union-attr]
        for f in (0.1, 0.4, 0.7)
    ]
    labelled = set(make(world, epochs=3).supervision.labelled.tolist())
    assert labelled == rows[0] < rows[1] < rows[2]


@pytest.mark.parametrize("apart", ["known", "unknown"])
def test_data_without_a_labelled_pair_are_refused(apart: str) -> None:
    world = make_world()
    shown = make(world, epochs=3).supervision.labelled.tolist()
    world.absent["train"] = {"image" if apart == "known" else "touch": shown}
    method = make(world, epochs=3)
    with pytest.raises(UserError, match=r"both 'touch' and 'image'.*setting unsup"):
        method.on_epoch_start(0, "warmup", Passes(world, method))
    bare = make(world, epochs=3, heads_on="raw", lambda_recon=0.0)
    bare.on_epoch_start(0, "warmup", Passes(world, bare))  # the ablation learns from no pair


def test_without_connection_nothing_pulls_at_the_connections() -> None:
    world = make_world()
    method = make(world, heads_on="raw", lambda_recon=0.0)
    method(step(method, world, "warmup"), "warmup", 3).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in method.connections.parameters())


def test_without_exploration_the_anchors_remain() -> None:
    world = make_world()
    method = with_sets(world, lambda_explore=0.0)
    logs = method(step(method, world, "explore"), "explore", 3).logs
    terms = ("recon", "supervised", "agree")
    total = sum(logs[f"loss/{n}"] for n in terms) + 0.5 * logs["loss/heads"]
    assert torch.allclose(logs["loss"], total, atol=1e-5)


@pytest.mark.parametrize("setting", ["semi", "unsup"])
@pytest.mark.parametrize("fidelity", ["rec", "paper", "code"])
def test_presets_differ_where_there_are_no_labels(setting: str, fidelity: str) -> None:
    config = CoxConfig.model_validate(
        {"unknown": "touch", "setting": setting, "fidelity": fidelity}
    )
    choices, semi = config.choices(), PRESETS[fidelity]
    changed = {k for k in CoxChoices.model_fields if getattr(choices, k) != getattr(semi, k)}
    wanted = {"paper": {"warmup_epochs", "lambda_agree"}, "code": {"refresh"}}
    assert changed == (wanted.get(fidelity, set()) if setting == "unsup" else set())
    assert config.resolved().choices() == choices


def test_a_single_class_is_refused() -> None:
    context = replace(make_context(make_world()), classes=("a",))
    with pytest.raises(UserError, match="two classes or more"):
        Cox(context, CoxConfig.model_validate(SMALL))


def test_a_class_without_a_labelled_sample_is_refused() -> None:
    world = make_world()
    world.labels["train"][world.labels["train"] == 1] = -1
    with pytest.raises(UserError, match="class 'b' has a label"):
        make(world)
