"""What the comparators with unlabelled samples share: settings, names of classes, bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from outmodal.errors import UserError
from outmodal.train.methods import (
    FreeMatchConfig,
    MixTextConfig,
    MocoConfig,
    MocoCoxConfig,
    SslConfig,
    build_method,
)
from tests.train.methods.fakes import Passes
from tests.train.methods.viewed import (
    touch_learner,
    viewed_context,
    viewed_world,
    words_learner,
)

BOTH = (SslConfig, MocoConfig)
ON_TOUCH = (SslConfig, MocoConfig, MocoCoxConfig, FreeMatchConfig)
EVERY = (*ON_TOUCH, MixTextConfig)


def built(kind: Any, context: Any = None, **keys: Any) -> Any:
    """A method of a configuration on its modality."""
    name = "words" if kind is MixTextConfig else "touch"
    world = viewed_world()
    if context is None:
        context = viewed_context(world, words_learner() if name == "words" else None)
    return build_method(kind(unknown=name, **keys), context)


def fitting(kind: Any) -> Any:
    return viewed_context(viewed_world(), words_learner() if kind is MixTextConfig else None)


@pytest.mark.parametrize("kind", EVERY)
def test_the_labelled_set_is_that_of_every_method(kind: Any) -> None:
    methods = [built(kind), built(SslConfig)]
    sets = [m.supervision.labelled for m in methods]
    assert np.array_equal(*sets)
    assert len(sets[0]) == 40
    assert methods[0].steps_per_epoch() == methods[1].steps_per_epoch()


@pytest.mark.parametrize("kind", BOTH)
def test_without_labels_no_label_is_read_and_classes_are_matched(kind: Any) -> None:
    world = viewed_world()
    method = build_method(kind(unknown="touch", setting="unsup"), viewed_context(world))
    assert method.hidden.all()
    batches = world.step(list(method.streams("train")), 0)
    assert "labelled" not in batches
    wrong = {n: replace(b, label=torch.zeros_like(b.label)) for n, b in batches.items()}
    torch.manual_seed(0)
    loss = method(batches, "train", 0).loss
    fresh = build_method(kind(unknown="touch", setting="unsup"), viewed_context(world))
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(fresh(wrong, "train", 0).loss, loss)
    found = method.evaluate(Passes(world, method))
    assert found["matched/top1"] >= max(found["top1"], 0.25)


def test_the_best_naming_is_found() -> None:
    method = built(SslConfig, setting="unsup")
    truth = torch.from_numpy(method.context.labels["test"])
    rows = torch.ones(len(truth), dtype=torch.bool)
    rows[:7] = False
    renamed = torch.tensor([2, 3, 1, 0])[truth]
    assert method.named(renamed[rows], rows) == 1.0
    assert method.named(torch.zeros(int(rows.sum()), dtype=torch.int64), rows) < 0.4


@pytest.mark.parametrize("kind", EVERY)
def test_a_single_class_is_refused(kind: Any) -> None:
    context = fitting(kind)
    labels = {split: np.zeros_like(held) for split, held in context.labels.items()}
    context = replace(context, classes=("cup",), labels=labels)
    with pytest.raises(UserError, match=r"'cup'.*(add samples of another|use a data set with)"):
        built(kind, context)


@pytest.mark.parametrize("kind", EVERY)
def test_ten_per_cent_of_three_samples_are_refused(kind: Any) -> None:
    context = fitting(kind)
    few = {"train": np.array([0, 1, 2]), "test": context.labels["test"]}
    with pytest.raises(UserError, match=r"label_fraction 0.1 of 3 .* gives none: raise it"):
        built(kind, replace(context, labels=few))


@pytest.mark.parametrize("kind", EVERY)
def test_a_class_without_a_label_is_refused(kind: Any) -> None:
    context = fitting(kind)
    labels = context.labels["train"].copy()
    labels[labels == 2] = -1
    with pytest.raises(UserError, match="no training sample of class 'c' has a label"):
        built(kind, replace(context, labels={**context.labels, "train": labels}))


@pytest.mark.parametrize("kind", BOTH)
def test_without_labels_none_is_asked_for(kind: Any) -> None:
    context = fitting(kind)
    bare = {**context.labels, "train": np.full(400, -1)}
    method = built(kind, replace(context, labels=bare), setting="unsup")
    assert not len(method.supervision.labelled)


@pytest.mark.parametrize("kind", [MocoConfig, MocoCoxConfig, FreeMatchConfig])
def test_an_input_without_augmentation_is_refused(kind: Any) -> None:
    context = viewed_context(viewed_world(), touch_learner(augment=False))
    with pytest.raises(UserError, match="'touch' has an empty list `augment`: name augmentations"):
        built(kind, context)


def test_freematch_needs_a_strong_list() -> None:
    context = viewed_context(viewed_world(), touch_learner(strong=False))
    with pytest.raises(UserError, match="'touch' has an empty list `strong`"):
        built(FreeMatchConfig, context)


def test_mixtext_needs_views_of_texts() -> None:
    context = viewed_context(viewed_world(), words_learner(augment=False))
    with pytest.raises(UserError, match="'words' has an empty list `augment`"):
        built(MixTextConfig, context)


@pytest.mark.parametrize("kind", ON_TOUCH)
def test_a_modality_without_learner_is_named(kind: Any) -> None:
    with pytest.raises(UserError, match=r"method\.unknown is 'toch'.*did you mean 'touch'"):
        build_method(kind(unknown="toch"), viewed_context(viewed_world()))


def test_everything_labelled_leaves_nothing_to_look_at() -> None:
    world = viewed_world()
    for kind in EVERY:
        name = "words" if kind is MixTextConfig else "touch"
        learner = words_learner() if name == "words" else None
        config = kind(unknown=name, label_fraction=1.0)
        method = build_method(config, viewed_context(world, learner))
        stage = method.stages()[0].name
        batches = world.step(list(method.streams(stage)), 0)
        assert "unlabelled" not in batches
        loss = method(batches, stage, 0).loss
        assert torch.isfinite(loss)
        loss.backward()
