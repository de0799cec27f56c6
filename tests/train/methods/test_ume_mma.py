"""UME-MMA: its phases, what they minimise, and that it holds what it promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.train.methods import (
    NaiveConfig,
    UmeMma,
    UmeMmaConfig,
    build_method,
)
from outmodal.train.methods.base import Stage
from tests.train.methods.fakes import Passes, World, make_context, make_world, run

LEARNED = ("touch", "image")


def made(world: World, epochs: int = 8, seed: int = 0, **keys: object) -> UmeMma:
    config = UmeMmaConfig.model_validate(keys)
    method = build_method(config, make_context(world, learners=LEARNED, epochs=epochs, seed=seed))
    assert isinstance(method, UmeMma)
    return method


def lengths(method: UmeMma) -> dict[str, int]:
    return {s.name: s.epochs for s in method.stages()}


def test_phases() -> None:
    world = make_world(train=40, test=20)
    assert lengths(made(world)) == {"unimodal": 4, "fusion": 4}
    assert lengths(made(world, 9, complete_epochs=3)) == {"unimodal": 3, "fusion": 3, "complete": 3}
    assert lengths(made(world, unimodal_epochs=0)) == {"fusion": 8}
    assert lengths(made(world, unimodal_epochs=6, complete_epochs=2)) == {
        "unimodal": 6,
        "complete": 2,
    }
    scaled = made(world, 3, complete_epochs=1, phase_lr_scale=0.1).stages()
    assert scaled == [
        Stage("unimodal", 1, 1.0, anew=True),
        Stage("fusion", 1, 0.1, anew=True),
        Stage("complete", 1, 0.1, anew=True),
    ]
    with pytest.raises(UserError, match=r"are more than the run's engine.epochs 8: lower them"):
        made(world, unimodal_epochs=7, complete_epochs=2)


def test_what_each_phase_minimises() -> None:
    world = make_world(train=80, test=20)
    world.absent["train"] = {"image": list(range(20)), "touch": list(range(10, 30))}
    world.labels["train"][70:75] = -1
    method = made(world, complete_epochs=2)
    method.on_epoch_start(3, "fusion", Passes(world, method))
    batches = world.step(list(method.streams("fusion")), 0)
    batch = batches["fused"]
    known = (batch.label >= 0) & (batch.present["touch"] | batch.present["image"])
    both = known & batch.present["touch"] & batch.present["image"]
    assert 0 < int(both.sum()) < int(known.sum()) < len(batch)

    def ensemble(rows: torch.Tensor, gone: dict[str, torch.Tensor] | None = None) -> float:
        logits = method.fused(method.representations(batch, gone))
        return float(F.cross_entropy(logits[rows], batch.label[rows]).detach())

    gone = method.gone(batch)
    assert any(bool(g.any()) for g in gone.values())
    assert not bool((gone["touch"] & gone["image"]).any())
    out = method(batches, "fusion", 0)
    assert float(out.loss.detach()) == pytest.approx(ensemble(known, gone), abs=1e-5)
    lost = (gone["touch"] | gone["image"])[known]
    assert float(out.logs["dropped"]) == pytest.approx(float(lost.float().mean()))
    assert float(method(batches, "complete", 0).loss.detach()) == pytest.approx(
        ensemble(both), abs=1e-5
    )
    own = []
    for m in LEARNED:
        rows = known & batch.present[m]
        r = method.encode(m, batch.x[m][rows])
        own.append(F.cross_entropy(method.alone({m: r})[m], batch.label[rows]))
    assert float(method(batches, "unimodal", 0).loss.detach()) == pytest.approx(
        float(sum(own).detach()), abs=1e-5
    )


def test_single_modalities_do_not_touch_each_other_in_the_first_phase() -> None:
    world = make_world(train=80, test=20)
    world.absent["train"]["image"] = list(range(80))
    method = made(world)
    method(world.step(list(method.streams("unimodal")), 0), "unimodal", 0).loss.backward()
    grads = {n: p.grad for n, p in method.named_parameters()}
    image = [g for n, g in grads.items() if n.startswith(("learners.1", "heads.1"))]
    assert image
    assert not any(g is not None and g.any() for g in image)
    assert any(g is not None and g.any() for n, g in grads.items() if n.startswith("learners.0"))


def test_frozen_encoders_get_no_gradient_and_no_statistics() -> None:
    world = make_world(train=80, test=20)
    method = made(world, freeze_encoders=True)
    norm = nn.BatchNorm1d(16)
    method.learners[0].backbone.append(norm)
    batches = world.step(list(method.streams("fusion")), 0)
    method.train()
    method(batches, "unimodal", 0).loss.backward()
    assert int(norm.num_batches_tracked) == 1
    assert all(p.grad is not None for p in method.learners.parameters())
    method.zero_grad(set_to_none=True)
    before = norm.running_mean.clone()
    method.train()
    method(batches, "fusion", 0).loss.backward()
    assert torch.equal(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 1
    assert all(p.grad is None for p in method.learners.parameters())
    assert all(p.grad is not None for p in method.heads.parameters())
    method.train()
    assert norm.training  # a later phase is not frozen by accident


def test_the_epoch_of_the_draws_is_part_of_a_checkpoint() -> None:
    world = make_world(train=80, test=20)
    first, second = made(world), made(world)
    first.on_epoch_start(6, "fusion", Passes(world, first))
    batch = world.step(list(first.streams("fusion")), 0)["fused"]
    drawn = torch.stack(list(first.gone(batch).values()))
    assert not torch.equal(drawn, torch.stack(list(second.gone(batch).values())))
    second.load_method_state(first.method_state())
    assert torch.equal(drawn, torch.stack(list(second.gone(batch).values())))


def unequal(seed: int) -> World:
    """ "image" is learned in a few steps. "touch" tells as much, by small steps far from zero, and
    takes longer: joint training leaves it to the other one."""
    world = make_world({"image": 12}, train=500, test=500, seed=seed)
    g = torch.Generator().manual_seed(seed)
    centre, away = torch.randn(4, 12, generator=g), 4.0 * torch.randn(8, generator=g)
    for split, labels in world.labels.items():
        y = torch.from_numpy(labels)
        noise = torch.randn(len(y), 20, generator=g)
        world.x[split]["touch"] = away + F.one_hot(y, 8) + 0.2 * noise[:, :8]
        world.x[split]["image"] = centre[y] + 0.7 * noise[:, 8:]
    return world


def test_it_keeps_what_naive_loses_and_loses_nothing() -> None:
    """With the same learners, steps and learning rate; means over two seeds."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(2):
        world = unequal(seed)
        for config in (NaiveConfig(), UmeMmaConfig()):
            context = make_context(world, learners=LEARNED, epochs=10, seed=seed)
            method = build_method(config, context)
            run(method, world)
            found.setdefault(config.name, []).append(method.evaluate(Passes(world, method)))
    naive, ume = (
        {name: sum(r[name] for r in found[config]) / 2 for name in found[config][0]}
        for config in ("naive", "ume_mma")
    )
    assert ume["miss_image/top1"] > naive["miss_image/top1"] + 0.2, found
    assert ume["average/top1"] > naive["average/top1"] + 0.07, found
    assert ume["miss_touch/top1"] > naive["miss_touch/top1"] - 0.02, found
    assert ume["top1"] > naive["top1"] - 0.02, found
