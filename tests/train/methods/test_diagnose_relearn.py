"""Diagnosing and re-learning: when, how far back, and what is held out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from outmodal.errors import UserError
from outmodal.train.methods import DiagnoseRelearn, DiagnoseRelearnConfig, build_method
from outmodal.train.methods.base import Context
from outmodal.train.methods.diagnose_relearn import pull, scaled
from tests.train.methods.fakes import Passes, World, make_context, make_world


def context(world: World, *splits: str) -> Context:
    return replace(make_context(world, learners=("touch", "image")), splits=splits)


def relearn(world: World, *splits: str, **keys: object) -> DiagnoseRelearn:
    made = build_method(DiagnoseRelearnConfig.model_validate(keys), context(world, *splits))
    assert isinstance(made, DiagnoseRelearn)
    return made


def test_numbers() -> None:
    assert pull(0.9, 0.7, 3.0) == pytest.approx(math.tanh(0.6))
    assert pull(0.9, float("nan"), 3.0) == 0.0
    x = torch.tensor([[0.0, 5.0, 1.0], [4.0, 5.0, 2.0], [2.0, 5.0, 2.0]])
    assert scaled(x).tolist() == [[-1, 0, -1], [1, 0, 1], [0, 0, 1]]
    assert len(scaled(x[:0])) == 0


def test_epochs_of_a_diagnosis() -> None:
    world = make_world({"image": 12}, train=96)
    method = relearn(world, holdout=0.2, every=2, times=2)
    passes = Passes(world, method)
    told = [bool(method.on_epoch_start(e, "train", passes)) for e in range(8)]
    assert told == [False, False, True, False, True, False, False, False]


def test_weights_go_back_by_alpha() -> None:
    world = make_world({"image": 12}, train=96)
    method = relearn(world, holdout=0.3, every=1)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    logs = method.on_epoch_start(1, "train", Passes(world, method))
    for place, m in enumerate(("touch", "image")):
        gap = abs(logs[f"purity_train/{m}"] - logs[f"purity_held_out/{m}"])
        alpha = logs[f"alpha/{m}"]
        assert alpha == pytest.approx(math.tanh(3 * gap))
        for name in method.encoder_names(m):
            first = method.initial[name.removeprefix("learners.").replace(".", "/", 1)]
            wanted = alpha * first + (1 - alpha) * before[name]
            assert torch.allclose(method.get_parameter(name), wanted, atol=1e-6), (place, name)
    assert torch.equal(method.joint.weight, before["joint.weight"])


def test_the_first_weights_are_kept_over_a_resume() -> None:
    world = make_world({"image": 12}, train=96)
    one = relearn(world, holdout=0.2)
    torch.manual_seed(9)
    two = relearn(world, holdout=0.2)
    with torch.no_grad():
        next(iter(two.learners.parameters())).add_(1.0)
    two.load_method_state(one.method_state())
    assert all(torch.equal(t, two.initial[n]) for n, t in one.initial.items())


def test_held_out_samples_are_not_trained_on() -> None:
    world = make_world({"image": 12}, train=96)
    method = relearn(world, holdout=0.25)
    select = method.streams("train")[0].select
    assert select is not None
    held = np.setdiff1d(np.arange(96), select)
    assert len(held) == pytest.approx(24, abs=2)
    assert set(world.labels["train"][held]) == {0, 1, 2, 3}


def test_the_last_sample_of_a_class_is_trained_on() -> None:
    world = make_world({"image": 12}, train=96)
    first = [int(np.flatnonzero(world.labels["train"] == c)[0]) for c in range(4)]
    labels = np.where(world.labels["train"] == 3, 0, world.labels["train"])
    labels[first[3]] = 3
    world.labels["train"] = labels
    for share in (0.2, 0.9):
        select = relearn(world, holdout=share).streams("train")[0].select
        assert select is not None
        assert set(labels[select]) == {0, 1, 2, 3}
    world.labels["train"] = np.full(96, -1)
    world.labels["train"][:4] = np.arange(4)
    with pytest.raises(UserError, match=r"holdout 0\.2 holds nothing out, as no class has two"):
        relearn(world, holdout=0.2)


def test_a_validation_split_is_used_where_there_is_one() -> None:
    world = make_world({"image": 12}, train=96, test=50)
    world.x["val"], world.labels["val"] = world.x["test"], world.labels["test"]
    world.absent["val"] = {}
    method = relearn(world, "train", "val", "test", every=1)
    assert method.streams("train")[0].select is None
    assert "alpha/touch" in method.on_epoch_start(1, "train", Passes(world, method))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "'val', but the data set has the splits train, test.*set method.holdout to 0.1"),
        ({"validation": "test"}, "'test', which the run trains on or is judged by"),
        ({"validation": "train"}, "'train', which the run trains on or is judged by"),
    ],
)
def test_no_validation_split(keys: dict[str, str], message: str) -> None:
    world = make_world({"image": 12}, train=64)
    method = relearn(world, "train", "test", **keys)
    with pytest.raises(UserError, match=message):
        method.on_epoch_start(0, "train", Passes(world, method))
