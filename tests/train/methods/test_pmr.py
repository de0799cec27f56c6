"""PMR: prototypes, and who learns from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from outmodal.train.methods import Pmr, PmrConfig, build_method
from outmodal.train.methods.pmr import blend, class_means, prototype_logits
from tests.train.methods.fakes import Passes, World, make_context, make_world

CPU = torch.device("cpu")


def pmr(world: World, **keys: object) -> Pmr:
    context = make_context(world, learners=("touch", "image"))
    made = build_method(PmrConfig.model_validate(keys), context)
    assert isinstance(made, Pmr)
    return made


def test_prototypes_and_their_logits() -> None:
    r = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 0, 1, 1, 1, 3, 3, 3, 3])
    means = class_means(r, label, 4)
    assert torch.allclose(means[1], r[2:5].mean(dim=0), atol=1e-6)
    assert means[2].isnan().all()
    logits = prototype_logits(r, means)
    wanted = -(r.double() - means[3].double()).norm(dim=1)
    assert torch.allclose(logits[:, 3].double(), wanted, atol=1e-5)
    assert (logits[:, 2] == -1e4).all()


def test_prototypes_move_slowly_and_keep_what_is_known() -> None:
    nan = float("nan")
    before, new = torch.tensor([[1.0], [nan], [3.0]]), torch.tensor([[2.0], [5.0], [nan]])
    assert blend(before, new, 0.2, CPU).tolist() == [[pytest.approx(1.8)], [5.0], [3.0]]
    assert blend(before * nan, new[:2].repeat(2, 1)[:3], 0.2, CPU).tolist() == [[2.0], [5.0], [2.0]]


def test_only_the_weaker_modality_has_the_term() -> None:
    world = make_world({"image": 12}, train=96)
    world.absent["train"]["image"] = [3, 4]
    method = pmr(world, alpha=1.5, fraction=1.0)
    method.on_epoch_start(0, "rebalanced", Passes(world, method))
    batch = world.batch(method.streams("")[0], np.arange(24))
    out = method({"fused": batch}, "rebalanced", 0)
    with torch.no_grad():
        r = method.representations(batch)
    terms, scores = {}, {}
    for m in ("touch", "image"):
        rows = batch.present[m]
        logits = prototype_logits(r[m].double(), method.prototypes[m]).double()
        terms[m] = float(F.cross_entropy(logits[rows], batch.label[rows]))
        right = logits.softmax(dim=1).gather(1, batch.label[:, None])[:, 0]
        scores[m] = float(right[batch.present["image"]].sum())
        assert float(out.logs[f"loss/prototypes_{m}"]) == pytest.approx(terms[m], abs=1e-4)
    weak = min(scores, key=lambda m: scores[m])
    wanted = float(out.logs["loss/task"]) + 1.5 * terms[weak]
    assert float(out.logs["loss"]) == pytest.approx(wanted, abs=1e-4)
    plain = method({"fused": batch}, "plain", 0)
    assert set(plain.logs) == {"loss", "loss/task"}


def test_state_and_stages() -> None:
    world = make_world({"image": 12}, train=96)
    one, two = pmr(world, end=3), pmr(world, end=3)
    assert [(s.name, s.epochs) for s in one.stages()] == [("rebalanced", 3), ("plain", 5)]
    one.on_epoch_start(0, "rebalanced", Passes(world, one))
    two.load_method_state(one.method_state())
    assert all(torch.equal(t, two.prototypes[m]) for m, t in one.prototypes.items())
    assert one.on_epoch_start(4, "plain", Passes(world, one)) == {}


def test_every_modality_below_the_mean_of_the_others_has_the_term() -> None:
    world = make_world({"image": 12, "text": 12, "smell": 5}, train=96)
    names = ("touch", "image", "text", "smell")
    method = pmr(world, modalities=names, alpha=2.0, fraction=1.0)
    method.on_epoch_start(0, "rebalanced", Passes(world, method))
    batch = world.batch(method.streams("")[0], np.arange(24))
    out = method({"fused": batch}, "rebalanced", 0)
    with torch.no_grad():
        r = method.representations(batch)
    sums = {}
    for m in names:
        logits = prototype_logits(r[m], method.prototypes[m]).double()
        sums[m] = float(logits.softmax(dim=1).gather(1, batch.label[:, None]).sum())
    weak = [m for m in names if 3 * sums[m] < sum(sums.values()) - sums[m]]
    assert 0 < len(weak) < 4
    wanted = out.logs["loss/task"] + 2.0 * sum(out.logs[f"loss/prototypes_{m}"] for m in weak)
    assert float(out.logs["loss"]) == pytest.approx(float(wanted), rel=1e-5)
