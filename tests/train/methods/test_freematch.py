"""FreeMatch: thresholds that follow the predictions, and what passes them."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from outmodal.train.methods import FreeMatchConfig, build_method
from outmodal.train.methods.freematch import STRONG, VIEWS, WEAK, FreeMatch, Levels
from tests.train.methods.fakes import Passes, run
from tests.train.methods.viewed import viewed_context, viewed_world


def method(**keys: Any) -> FreeMatch:
    context = viewed_context(viewed_world(noise=0.3))
    built = build_method(FreeMatchConfig(unknown="touch", **keys), context)
    assert isinstance(built, FreeMatch)
    return built


def test_running_means_are_those_of_the_paper() -> None:
    levels = Levels(3, 0.9)
    level, prior, histogram = 1 / 3, torch.full((3,), 1 / 3), torch.full((3,), 1 / 3)
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        q = torch.randn(16, 3, generator=g).softmax(dim=1)
        levels.see(q, 1.0)
        confidence, label = q.max(dim=1)
        level = 0.9 * level + 0.1 * confidence.mean().item()
        prior = 0.9 * prior + 0.1 * q.mean(dim=0)
        histogram = 0.9 * histogram + 0.1 * torch.bincount(label, minlength=3) / 16
    assert torch.allclose(levels.level, torch.tensor([level]), atol=1e-6)
    assert torch.allclose(levels.prior, prior, atol=1e-6)
    assert torch.allclose(levels.histogram, histogram, atol=1e-6)


def test_two_halves_of_a_step_move_them_as_far_as_a_whole() -> None:
    q = torch.randn(16, 3).softmax(dim=1)
    whole, halves = Levels(3, 0.9), Levels(3, 0.9)
    whole.see(q, 1.0)
    halves.see(q, 0.5)
    halves.see(q, 0.5)
    assert all(torch.allclose(t, halves.state()[k], atol=1e-6) for k, t in whole.state().items())
    before = {k: t.clone() for k, t in whole.state().items()}
    whole.see(q[:0], 1.0)
    assert all(torch.equal(t, before[k]) for k, t in whole.state().items())


def test_a_step_is_the_formula() -> None:
    one = method(unlabelled_ratio=2, ema=0.5, lambda_unlabelled=0.7, lambda_fairness=0.2)
    world = viewed_world(noise=0.3)
    specs = list(one.streams("train"))
    assert [s.batch for s in specs] == [32, 64]
    assert [v.policy for v in specs[1].views] == ["augment", "strong"]
    level, prior, histogram = 0.25, torch.full((4,), 0.25), torch.full((4,), 0.25)
    for step in range(3):
        batches = world.step(specs, step)
        out = one(batches, "train", step)
        x = batches[VIEWS].x
        q, strong = (one.classify(one.encode(x[n])).softmax(dim=1) for n in (WEAK, STRONG))
        confidence, label = q.max(dim=1)
        level = 0.5 * level + 0.5 * confidence.mean().item()
        prior = 0.5 * prior + 0.5 * q.mean(dim=0)
        histogram = 0.5 * histogram + 0.5 * torch.bincount(label, minlength=4) / 64
        sure = confidence >= level * (prior / prior.max())[label]
        losses = F.nll_loss(strong.log(), label, reduction="none")
        unlabelled = (losses * sure).sum() / 64
        kept = strong[sure]
        seen = torch.bincount(kept.argmax(dim=1), minlength=4) / len(kept)
        a, there = prior / histogram.clamp_min(1e-30), seen > 0
        b = kept.mean(dim=0)[there] / seen[there]
        fair = ((a / a.sum())[there] * (b / b.sum()).log()).sum()
        assert torch.allclose(out.logs["loss/unlabelled"], unlabelled, atol=1e-5)
        assert torch.allclose(out.logs["loss/fairness"], fair, atol=1e-4)
        assert torch.allclose(out.logs["kept"], sure.float().mean(), atol=1e-6)
        supervised = out.logs["loss/supervised"]
        assert torch.allclose(out.loss, supervised + 0.7 * unlabelled + 0.2 * fair, atol=1e-4)


def test_the_weak_view_has_no_gradient() -> None:
    one, world = method(unlabelled_ratio=1), viewed_world(noise=0.3)
    batches = world.step(list(one.streams("train")), 0)
    weak = batches[VIEWS].x[WEAK].requires_grad_()
    strong = batches[VIEWS].x[STRONG].requires_grad_()
    one(batches, "train", 0).loss.backward()
    assert weak.grad is None or not weak.grad.any()
    assert strong.grad is not None
    assert strong.grad.any()


def test_it_learns_and_its_threshold_rises() -> None:
    one, world = method(unlabelled_ratio=1, ema=0.9, label_fraction=0.1), viewed_world(noise=0.3)
    before = one.evaluate(Passes(world, one))["top1"]
    run(one, world)
    assert one.evaluate(Passes(world, one))["top1"] > max(before, 0.4)
    assert float(one.levels.level) > 0.5


def test_the_state_continues_bit_for_bit() -> None:
    world, one, other = viewed_world(), method(), method()
    specs = list(one.streams("train"))
    one(world.step(specs, 0), "train", 0)
    other.load_method_state({k: t.clone() for k, t in one.method_state().items()})
    batches = world.step(specs, 1)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(batches, "train", 1).loss, other(batches, "train", 1).loss)
