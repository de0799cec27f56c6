"""ReconBoost: turns, weights of samples, and one head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from outmodal.train.methods import ReconBoost, ReconBoostConfig, build_method
from outmodal.train.methods.reconboost import sample_weight
from tests.train.methods.fakes import World, make_context, make_world


def boost(world: World, epochs: int = 8, **keys: object) -> ReconBoost:
    context = make_context(world, learners=("touch", "image"), epochs=epochs)
    made = build_method(ReconBoostConfig.model_validate(keys), context)
    assert isinstance(made, ReconBoost)
    return made


def test_turns_follow_each_other_until_the_run_ends() -> None:
    world = make_world({"image": 12}, train=64)
    keys = {"start_epochs": 2, "turn_epochs": 3, "together_epochs": 1}
    shown = [(s.name, s.epochs) for s in boost(world, 12, **keys).stages()]
    assert shown == [
        ("start", 2),
        ("turn:touch", 3),
        ("together", 1),
        ("turn:image", 3),
        ("together", 1),
        ("turn:touch", 2),
    ]
    assert [s.name for s in boost(world, 3).stages()] == ["start"]
    none = boost(world, 9, start_epochs=0, together_epochs=0, turn_epochs=4)
    assert [(s.name, s.epochs) for s in none.stages()] == [
        ("turn:touch", 4),
        ("turn:image", 4),
        ("turn:touch", 1),
    ]


def test_a_sample_counts_by_what_the_others_lack() -> None:
    found = sample_weight(torch.tensor([0.0, 0.5, 1.0]), 5.0, 1.0, 4)
    assert found.tolist() == [1.25, 1.125, 1.0]


def test_a_turn_by_hand() -> None:
    world = make_world(train=64)
    world.absent["train"]["touch"] = [1, 2]
    method = boost(world, modalities=("touch", "image", "text"), w1=4.0, w2=2.0)
    batch = world.batch(method.streams("")[0], np.arange(20))
    out = method({"fused": batch}, "turn:touch", 0)
    with torch.no_grad():
        logits = {m: t.double() for m, t in method.alone(method.representations(batch)).items()}
    others = (logits["image"] + logits["text"]).softmax(dim=1)
    weight = (4.0 - 2.0 * others.gather(1, batch.label[:, None])[:, 0]) / 4
    rows = batch.present["touch"]
    each = F.cross_entropy(logits["touch"], batch.label, reduction="none")
    wanted = float((weight * each)[rows].mean())
    assert float(out.logs["loss/turn"]) == pytest.approx(wanted, abs=1e-5)
    out.loss.backward()
    moved = {n for n, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert {n.split(".")[0] for n in moved} == {"learners", "heads"}
    assert all(n.startswith("learners.0.") for n in moved if n.startswith("learners"))


def test_all_learn_from_the_sum() -> None:
    world = make_world({"image": 12}, train=64)
    method = boost(world)
    batch = world.batch(method.streams("")[0], np.arange(20))
    with torch.no_grad():
        parts = method.alone(method.representations(batch))
    summed = parts["touch"].double() + parts["image"].double()
    out = method({"fused": batch}, "together", 0)
    wanted = float(F.cross_entropy(summed, batch.label))
    assert float(out.logs["loss/task"]) == pytest.approx(wanted, abs=1e-5)
    alone = method({"fused": batch}, "start", 0)
    for m, logits in parts.items():
        wanted = float(F.cross_entropy(logits.double(), batch.label))
        assert float(alone.logs[f"loss/task_{m}"]) == pytest.approx(wanted, abs=1e-5)


def test_one_head_for_all_sizes() -> None:
    world = make_world(train=64)
    method = boost(world, modalities=("touch", "image", "text"))
    assert len(method.heads) == 1
    assert [isinstance(a, nn.Identity) for a in method.adapters] == [True, True, False]
    assert method.classifier("image") is method.heads[0]
    assert method.classifier("text") is None
    apart = boost(world, modalities=("touch", "text"), shared_head=False)
    assert [h.in_features for h in apart.heads] == [16, 12]  # type: ignore[union-attr]


def test_those_that_wait_keep_their_statistics() -> None:
    world = make_world({"image": 12}, train=64)
    method = boost(world)
    norm = nn.BatchNorm1d(16)
    method.learners[1].backbone.append(norm)  # type: ignore[union-attr,operator]
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    batch = world.batch(method.streams("")[0], np.arange(20))
    method({"fused": batch}, "turn:touch", 0)
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    assert norm.training
    method({"fused": batch}, "turn:image", 0)
    assert not torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
