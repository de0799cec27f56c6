"""Fusion by concatenation, alone (joint_train), of one modality (unimodal), and with InfoNCE."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.train.methods import (
    InfoNceConfig,
    JointTrainConfig,
    UnimodalConfig,
    build_method,
)
from outmodal.train.methods.concat import Concat, ScoreBoard
from tests.train.methods.fakes import Passes, World, make_context, make_world, run

LEARNED = ("touch", "image")


def joint(world: World) -> Concat:
    made = build_method(
        JointTrainConfig(modalities=("touch", "image", "text")),
        make_context(world, learners=LEARNED),
    )
    assert isinstance(made, Concat)
    return made


def test_one_linear_classifier_of_all() -> None:
    world = make_world(train=64)
    world.labels["train"][5] = -1
    method = joint(world)
    batch = world.batch(method.streams("")[0], np.arange(30))
    with torch.no_grad():
        r = method.representations(batch)
        wide = torch.cat([r["touch"], r["image"], r["text"]], dim=1).double()
        logits = wide @ method.joint.weight.double().T + method.joint.bias.double()
        wanted = F.cross_entropy(logits, batch.label, ignore_index=-1)
        assert torch.allclose(method.fused(r).double(), logits, atol=1e-5)
    out = method({"fused": batch}, "train", 0)
    assert float(out.logs["loss"]) == pytest.approx(float(wanted), abs=1e-5)


def test_shares_add_up() -> None:
    world = make_world(train=64)
    method = joint(world)
    torch.nn.init.normal_(method.joint.bias)
    with torch.no_grad():
        r = method.representations(world.batch(method.streams("")[0], np.arange(30)))
    shares = method.shares(r)
    assert list(shares) == ["touch", "image", "text"]
    assert torch.allclose(sum(shares.values()), method.fused(r), atol=1e-5)  # type: ignore[arg-type]
    one = r["image"].double() @ method.joint.weight[:, 16:32].double().T
    one = one + method.joint.bias.double() / 3
    assert torch.allclose(shares["image"].double(), one, atol=1e-5)
    assert not any(t.requires_grad for t in shares.values())


def test_features_of_a_pass() -> None:
    world = make_world(train=64)
    world.absent["train"]["touch"] = [3]
    method = joint(world)
    out = method.features(Passes(world, method), np.arange(10))
    assert out["representation:text"].shape == (10, 12)
    assert out["present:touch"].tolist() == [i != 3 for i in range(10)]
    assert out["label"].tolist() == world.labels["train"][:10].tolist()
    assert len(method.features(Passes(world, method), split="test")["label"]) == 400


def test_the_score_board_is_the_ratio_of_true_probabilities() -> None:
    g = torch.Generator().manual_seed(0)
    logits = {m: torch.randn(9, 4, generator=g) for m in "abc"}
    label = torch.randint(0, 4, (9,), generator=g)
    rows = torch.arange(9) < 7
    label[8] = -1
    sums = [
        float(t.double().softmax(dim=1)[torch.arange(7), label[:7]].sum()) for t in logits.values()
    ]
    wanted = [2 * s / (sum(sums) - s) for s in sums]
    board = ScoreBoard()
    assert board.ratios(3).tolist() == [1.0] * 3
    half = torch.arange(9) < 4
    board.add(logits, label, rows & half)
    assert board.add(logits, label, rows & ~half).tolist() == pytest.approx(wanted, rel=1e-5)
    board.clear()
    assert board.add(logits, label, torch.zeros(9, dtype=torch.bool)).tolist() == [1.0] * 3


def test_unimodal_is_one_stream() -> None:
    world = make_world(train=200)
    world.absent["train"]["touch"] = [0, 1]
    context = make_context(world, learners=LEARNED)
    method = build_method(UnimodalConfig(modalities=("touch",)), context)
    assert method.streams("train")[0].modalities == ("touch",)
    assert not any("image" in name for name, _ in method.named_parameters())
    run(method, world)
    found = method.evaluate(Passes(world, method))
    assert set(found) == {"top1", "only_touch/top1"}
    assert found["only_touch/top1"] == found["top1"] > 0.35
    parts, x = method.eval().export_parts(None), world.x["test"]["touch"][:9]
    assert parts.classifier is not None
    whole = world.batch(replace(method.streams("")[0], split="test"), np.arange(9))
    with torch.no_grad():
        out = parts.classifier(parts.learner(x))
        assert torch.equal(out, method.infer("logits:touch", whole)["logits"])
        assert torch.equal(out, method.infer("logits", whole)["logits"])
    with pytest.raises(UserError, match="trains one modality, got touch, image: name one"):
        build_method(UnimodalConfig(), context)


def test_infonce_by_hand() -> None:
    world = make_world(train=64)
    world.absent["train"]["touch"] = [2, 5]
    context = make_context(world, learners=LEARNED)
    keys = {"modalities": ("touch", "image", "text"), "temperature": 0.2, "dim": 8}
    method = build_method(InfoNceConfig.model_validate(keys), context)
    assert isinstance(method, Concat)
    batch = world.batch(method.streams("")[0], np.arange(12))
    out = method({"fused": batch}, "train", 0)
    with torch.no_grad():
        r = method.representations(batch)
        unit = {
            m: F.normalize(head(r[m]).double(), dim=1)
            for m, head in zip(method.modalities, method.projections, strict=True)  # type: ignore
        }
    total = 0.0
    for a, b in method.pairs():
        both = batch.present[a] & batch.present[b]
        logits = unit[a][both] @ unit[b][both].T / 0.2
        target = torch.arange(len(logits))
        total += float(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert float(out.logs["loss/contrast"]) == pytest.approx(total / 3, abs=1e-4)
    task = float(out.logs["loss/task"])
    assert float(out.logs["loss"]) == pytest.approx(task + 0.1 * total / 3, abs=1e-4)


@pytest.mark.parametrize("config", [JointTrainConfig(), InfoNceConfig()])
def test_samples_that_pair_nothing_are_refused(config: JointTrainConfig | InfoNceConfig) -> None:
    world = make_world(train=40)
    world.absent["train"] = {"touch": list(range(20)), "image": list(range(20, 40))}
    method = build_method(config, make_context(world, learners=LEARNED))
    with pytest.raises(UserError, match="has 2 of touch, image"):
        method.on_epoch_start(0, "train", Passes(world, method))
