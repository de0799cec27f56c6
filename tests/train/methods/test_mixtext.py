"""MixText: what is mixed with what, where, and which targets follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.models.learners.layered import Layered
from outmodal.models.objectives.mixtext import sharpen
from outmodal.train.methods import MixTextConfig, build_method
from outmodal.train.methods.mixtext import MixText, Texts, drawn_partners, mix_layers
from tests.train.methods.fakes import Passes, TinyLearner, run
from tests.train.methods.viewed import viewed_context, viewed_world, words_learner


def method(depth: int = 3, **keys: Any) -> MixText:
    context = viewed_context(viewed_world(), words_learner(depth))
    built = build_method(MixTextConfig(unknown="words", **keys), context)
    assert isinstance(built, MixText)
    return built


def texts(count: int, first: int) -> Texts:
    """Texts that are told apart by their only token."""
    number = torch.arange(first, first + count)
    there = torch.ones(count, dtype=torch.bool)
    return Texts(number[:, None], F.one_hot(number % 4, 4).float(), there, there)


def test_streams_ask_for_the_text_and_its_views() -> None:
    labelled, other = method(views=3, unlabelled_ratio=2).streams("train")
    assert labelled.modalities == ("words",)
    assert other.batch == 2 * labelled.batch
    assert [v.policy for v in other.views] == ["none", "augment", "augment", "augment"]


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, (7, 9, 12)), (24, (14, 18, 24)), (4, (3, 4)), (2, (2,)), (1, (1,))]
)
def test_layers_are_those_of_the_paper_in_proportion(depth: int, layers: tuple[int, ...]) -> None:
    assert mix_layers(words_learner(depth), ()) == layers


def test_asked_layers_must_be_there() -> None:
    assert mix_layers(words_learner(3), (0, 2)) == (0, 2)
    with pytest.raises(UserError, match="names layer 4, and the learner of 'words' has 3: choose"):
        method(mix_layers=(1, 4))


def test_a_learner_without_layers_is_refused() -> None:
    context = viewed_context(viewed_world(), TinyLearner("touch", 8))
    with pytest.raises(UserError, match="no layers to mix between: choose learner bert"):
        build_method(MixTextConfig(unknown="touch"), context)


def test_every_text_is_the_partner_of_one() -> None:
    parts = [texts(5, 0), texts(8, 5), texts(8, 13)]
    partner = drawn_partners(parts, np.random.default_rng(0))
    assert sorted(partner.x.flatten().tolist()) == list(range(21))
    assert torch.equal(partner.target.argmax(dim=1), partner.x.flatten() % 4)


def test_guesses_are_sharpened_means_over_views_and_labels_are_labels() -> None:
    one, world = method(views=2, unlabelled_ratio=1), viewed_world()
    batches = world.step(list(one.streams("train")), 0)
    labelled, *views = one._parts(batches)
    assert torch.equal(labelled.target.argmax(dim=1), batches["labelled"].label)
    looks = list(batches["unlabelled"].x.values())
    assert len(views) == len(looks) == 3
    mean = torch.stack([one.classify(one.encode(x)).softmax(dim=1) for x in looks]).mean(dim=0)
    for part, x in zip(views, looks, strict=True):
        assert torch.equal(part.x, x)
        assert torch.allclose(part.target, sharpen(mean, 0.5), atol=1e-6)
        assert not part.target.requires_grad
        assert not part.labelled.any()


def test_a_text_mixed_with_itself_is_itself() -> None:
    one, world = method(), viewed_world()
    own = Texts.join(one._parts(world.step(list(one.streams("train")), 0)))
    logits, target = one._mixed(own, own, np.random.default_rng(0))
    assert torch.allclose(logits, one.classify(one.encode(own.x)), atol=1e-5)
    assert torch.allclose(target, own.target)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_hidden_states_and_targets_are_mixed_by_the_larger_share(layer: int) -> None:
    one, world = method(mix_layers=(layer,)), viewed_world()
    own = Texts.join(one._parts(world.step(list(one.streams("train")), 0)))
    partner = own.rows(torch.arange(len(own.x)).flip(0))
    logits, target = one._mixed(own, partner, np.random.default_rng(5))
    share = float(np.random.default_rng(5).beta(0.75, 0.75))
    share = max(share, 1 - share)
    learner = one.learner
    assert isinstance(learner, Layered)
    states = []
    for part in (own, partner):
        hidden, mask = learner.first(part.x)
        states.append((learner.onward(hidden, mask, 0, layer), mask))
    (a, mask_a), (b, mask_b) = states
    mask = mask_a | mask_b
    hidden = learner.onward(share * a + (1 - share) * b, mask, layer, learner.depth)
    z = learner.pooled(hidden, mask)
    z = F.normalize(one.projection(z), dim=1) * one.dim**0.5
    assert torch.allclose(logits, one.classify(z), atol=1e-4)
    assert torch.allclose(target, share * own.target + (1 - share) * partner.target)
    assert share >= 0.5


def test_the_unlabelled_weight_rises_over_the_run() -> None:
    one, world = method(ramp=0.5, lambda_unlabelled=2.0), viewed_world()
    specs = list(one.streams("train"))
    steps = one.steps_per_epoch() * one.context.epochs
    found = []
    for done in (0, steps // 4, steps // 2, steps - 1):
        one.steps.fill_(done)
        out = one(world.step(specs, 0), "train", 0)
        terms = out.logs["loss"] - out.logs["loss/supervised"]
        found.append(float(terms / out.logs["loss/unlabelled"]))
    assert found == pytest.approx([0.0, 1.0, 2.0, 2.0], abs=1e-3)


def test_hidden_labels_are_not_read() -> None:
    world, one, other = viewed_world(), method(), method()
    other.load_state_dict(one.state_dict())
    batches = world.step(list(one.streams("train")), 0)
    blind = replace(batches["unlabelled"], label=torch.zeros_like(batches["unlabelled"].label))
    loss = one(batches, "train", 0).loss
    assert torch.equal(other({**batches, "unlabelled": blind}, "train", 0).loss, loss)


def test_guesses_under_autocast_leave_every_gradient() -> None:
    world, one = viewed_world(), method(ramp=0.0)
    batches = world.step(list(one.streams("train")), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one(batches, "train", 0).loss.backward()
    assert all(p.grad is not None for p in one.parameters())


def test_the_encoder_may_have_a_rate_of_its_own() -> None:
    groups = method(encoder_lr_scale=0.01).param_groups()
    assert [g.get("lr_scale", 1.0) for g in groups] == [0.01, 1.0]
    assert sum(len(g["params"]) for g in groups) == len(list(method().parameters()))


def test_it_learns() -> None:
    one, world = method(2, unlabelled_ratio=1, label_fraction=0.25), viewed_world()
    before = one.evaluate(Passes(world, one))["top1"]
    run(one, world, lr=3e-3)
    assert one.evaluate(Passes(world, one))["top1"] > max(before, 0.4)
