"""MoCo and MoCo + COX: queries, keys, the queue, and what is added where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from outmodal.models.features import unit_norm
from outmodal.models.objectives.entropy import entropy_rows
from outmodal.models.objectives.moco import moco_rows
from outmodal.train.methods import CoxConfig, MocoConfig, MocoCoxConfig, build_method
from outmodal.train.methods.cox_base import CoxBase
from outmodal.train.methods.moco import KEY, QUERY, VIEWS, Moco
from tests.train.methods.fakes import Passes, run
from tests.train.methods.viewed import viewed_context, viewed_world

SMALL = {"unknown": "touch", "momentum": 0.9, "queue": 100, "contrast_dim": 8}
COX = {"unknown": "touch", "vib_hidden": 16, "vib_latent": 4, "warmup_epochs": 2}


def method(**keys: Any) -> Moco:
    context = viewed_context(viewed_world())
    built = build_method(MocoConfig.model_validate({**SMALL, **keys}), context)
    assert isinstance(built, Moco)
    return built


def test_two_views_of_all_samples_are_asked_for() -> None:
    spec = method().streams("train")[1]
    assert (spec.name, spec.modalities, spec.select) == (VIEWS, (), None)
    assert [(v.name, v.modality, v.policy) for v in spec.views] == [
        (QUERY, "touch", "augment"),
        (KEY, "touch", "augment"),
    ]


def test_a_step_is_the_formula() -> None:
    world, one = viewed_world(), method(lambda_moco=2.0, lambda_entropy=0.3)
    specs = list(one.streams("train"))
    queued: list[torch.Tensor] = []
    for step in range(3):
        batches = world.step(specs, step)
        views, labelled = batches[VIEWS], batches["labelled"]
        out = one(batches, "train", step)
        r = one.learner(views.x[QUERY])
        # one step in, the encoder is still the learner: nothing has moved it
        k = unit_norm(one.contrast_head(one.learner(views.x[KEY])))
        q = unit_norm(one.contrast_head(r))
        contrast = moco_rows(q, k, torch.cat(queued) if queued else None).mean()
        queued.append(k.detach())
        logits = one.classify(one.encode(views.x[QUERY]))
        entropy = entropy_rows(logits)[one.hidden[views.index]].mean()
        clean = one.classify(one.encode(labelled.x["touch"]))
        supervised = torch.nn.functional.cross_entropy(clean, labelled.label)
        assert torch.allclose(out.logs["loss/moco"], contrast, atol=1e-5)
        assert torch.allclose(out.logs["loss/entropy"], entropy, atol=1e-5)
        assert torch.allclose(out.loss, supervised + 2 * contrast + 0.3 * entropy, atol=1e-5)


def test_without_entmin_there_is_no_entropy() -> None:
    world, one = viewed_world(), method(lambda_entropy=0.0)
    out = one(world.step(list(one.streams("train")), 0), "train", 0)
    assert {"loss/moco", "loss/supervised", "loss"} == set(out.logs)


def test_keys_come_from_an_encoder_that_lags_behind() -> None:
    world, one = viewed_world(), method(momentum=0.99)
    run(one, world)
    momentum, learner = one.contrast.momentum["learner"], one.learner
    pairs = list(zip(momentum.parameters(), learner.parameters(), strict=True))
    assert all(not torch.equal(a, b) for a, b in pairs)
    assert all(p.grad is None for p in momentum.parameters())


def test_the_queue_holds_half_of_the_data_at_most() -> None:
    world, one = viewed_world(), method(queue=65_536)
    assert one.contrast.queue.capacity == 200
    run(one, world)
    assert len(one.contrast.queue) == 200


def test_without_labels_the_classifier_stays_and_views_come_together() -> None:
    world, one = viewed_world(noise=0.2), method(setting="unsup", momentum=0.5)
    before = one.classifier.weight.clone()
    batches = world.step(list(one.streams("train")), 999)
    x = batches[VIEWS].x

    def closeness() -> float:
        one.eval()
        heads = [unit_norm(one.contrast_head(one.learner(x[name]))) for name in (QUERY, KEY)]
        mine = cosine_similarity(*heads).mean()
        others = cosine_similarity(heads[0], heads[1].roll(1, 0)).mean()
        one.train()
        return (mine - others).item()

    apart = closeness()
    run(one, world)
    assert closeness() > apart + 0.1
    assert torch.equal(one.classifier.weight, before)
    found = one.evaluate(Passes(world, one))
    assert set(found) == {"top1", "top5", "matched/top1", "clusters/top1"}
    assert found["clusters/top1"] > 0.4


def test_rows_without_the_modality_are_not_queued() -> None:
    world, one = viewed_world(), method()
    batches = world.step(list(one.streams("train")), 0)
    gone = torch.arange(32) < 20
    views = batches[VIEWS]
    lacking = {name: there & ~gone for name, there in views.present.items()}
    one({**batches, VIEWS: replace(views, present=lacking)}, "train", 0)
    assert len(one.contrast.queue) == 12


def test_the_state_continues_bit_for_bit() -> None:
    world = viewed_world()
    one, other = method(), method()
    specs = list(one.streams("train"))
    for step in range(3):
        one(world.step(specs, step), "train", step)
    other.load_state_dict(one.state_dict())
    other.load_method_state({k: t.clone() for k, t in one.method_state().items()})
    batches = world.step(specs, 3)
    assert torch.equal(one(batches, "train", 3).loss, other(batches, "train", 3).loss)


@pytest.mark.parametrize("setting", ["semi", "unsup"])
def test_moco_beside_cox_adds_its_term_to_every_stage(setting: str) -> None:
    world = viewed_world()
    keys = {**COX, "setting": setting}
    context = viewed_context(world)
    both = build_method(MocoCoxConfig.model_validate({**keys, **SMALL}), context)
    assert isinstance(both, CoxBase)
    alone = build_method(CoxConfig.model_validate(keys), viewed_context(world))
    weights = {k: t for k, t in both.state_dict().items() if not k.startswith("contrast_head")}
    alone.load_state_dict(weights)
    for epoch, stage in enumerate(s.name for s in both.stages()):
        for one in (both, alone):
            one.on_epoch_start(epoch, stage, Passes(world, one))
        specs = list(both.streams(stage))
        assert [s.name for s in specs] == [*(s.name for s in alone.streams(stage)), VIEWS]
        batches = world.step(specs, epoch)
        plain = alone({n: b for n, b in batches.items() if n != VIEWS}, stage, epoch)
        out = both(batches, stage, epoch)
        assert torch.allclose(out.loss, plain.loss + out.logs["loss/moco"], atol=1e-5)
        assert set(out.logs) == {*plain.logs, "loss/moco"}
    assert {n for n in both.method_state() if n.startswith("moco/")}
    groups = [g["name"] for g in both.param_groups()]
    assert groups == [*(g["name"] for g in alone.param_groups()), "contrast"]
