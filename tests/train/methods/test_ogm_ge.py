"""OGM-GE: which gradients are scaled by what, and blurred by how much."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from outmodal.train.methods import OgmGe, OgmGeConfig, build_method
from outmodal.train.methods.concat import windowed
from outmodal.train.methods.ogm_ge import coefficients
from tests.train.methods.fakes import World, make_context, make_world

LEARNED = ("touch", "image")


def ogm(world: World, conv: bool = False, **keys: object) -> OgmGe:
    context = make_context(world, learners=LEARNED)
    if conv:
        first = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 2, 3), nn.Flatten())
        context.learners["touch"].backbone = nn.Sequential(first, nn.Linear(12, 16))
    made = build_method(OgmGeConfig.model_validate(keys), context)
    assert isinstance(made, OgmGe)
    return made


def test_coefficients() -> None:
    found = coefficients(torch.tensor([0.5, 1.0, 2.0]), 0.8).tolist()
    assert found == pytest.approx([1.0, 1.0, 1 - math.tanh(1.6)], abs=1e-6)


def test_the_epochs_of_modulation() -> None:
    shown = [(s.name, s.epochs) for s in windowed("modulated", 10, 2, 5)]
    assert shown == [("plain", 2), ("modulated", 3), ("plain", 5)]
    assert [(s.name, s.epochs) for s in windowed("modulated", 8, 0, 50)] == [("modulated", 8)]
    assert [(s.name, s.epochs) for s in windowed("modulated", 8, 9, 5)] == [("plain", 8)]


def edited(method: OgmGe, stage: str = "modulated", step: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    given = {n: torch.randn(p.shape, generator=g) for n, p in method.named_parameters()}
    held = {n: t.clone() for n, t in given.items()}
    method.edit_gradients(held, stage, step)
    return {n: held[n] - given[n] for n in given}


def test_the_stronger_modality_learns_less() -> None:
    """By the fp64 ratio of true probabilities of one step's batches."""
    world = make_world({"image": 12}, train=64)
    world.absent["train"]["touch"] = [1, 2]
    method = ogm(world, noise=False)
    with torch.no_grad():
        method.joint.weight[:, 16:] *= 20  # image decides
    sums = {"touch": 0.0, "image": 0.0}
    for rows in (np.arange(16), np.arange(16, 32)):
        batch = world.batch(method.streams("")[0], rows)
        out = method({"fused": batch}, "modulated", 0)
        with torch.no_grad():
            r = method.representations(batch)
        for i, m in enumerate(LEARNED):
            w = method.joint.weight.detach().double()[:, 16 * i : 16 * (i + 1)]
            p = (r[m].double() @ w.T + method.joint.bias.detach().double() / 2).softmax(dim=1)
            right = p.gather(1, batch.label[:, None])[:, 0]
            sums[m] += float(right[batch.present["touch"]].sum())
    strong = max(sums, key=lambda m: sums[m])
    weak = min(sums, key=lambda m: sums[m])
    ratio = sums[strong] / sums[weak]
    assert float(out.logs[f"ratio/{strong}"]) == pytest.approx(ratio, rel=1e-4)
    g = torch.Generator().manual_seed(0)
    given = {n: torch.randn(p.shape, generator=g) for n, p in method.named_parameters()}
    held = {n: t.clone() for n, t in given.items()}
    method.edit_gradients(held, "modulated", 0)
    scaled = set(method.modulated_names(strong))
    for name, t in given.items():
        factor = 1 - math.tanh(0.8 * ratio) if name in scaled else 1.0
        assert torch.allclose(held[name], factor * t, atol=1e-5), name
    assert method.modulated_names(weak)
    changed = edited(method)  # the next step begins anew: no scores, ratio 1
    assert not any(t.any() for t in changed.values())


def test_noise_is_as_wide_as_the_gradient_and_of_the_step() -> None:
    world = make_world({"image": 12}, train=64)
    method = ogm(world, scope="all")
    one, again, later = edited(method), edited(method), edited(method, step=1)
    name = "learners.0.backbone.2.weight"
    assert float(one[name].std()) == pytest.approx(1.0, rel=0.2)
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], later[name])
    assert not one["joint.weight"].any()  # the classifier is left alone
    assert not any(t.any() for t in edited(method, "plain").values())


def test_what_of_an_encoder() -> None:
    world = make_world({"image": 12}, train=64)
    kernels = ["learners.0.backbone.0.1.weight"]
    method = ogm(world, conv=True)
    assert method.modulated_names("touch") == kernels
    assert method.modulated_names("image") == [f"learners.1.backbone.{i}.weight" for i in (0, 2)]
    assert ogm(world, conv=True, scope="conv").modulated_names("image") == []
    assert len(ogm(world, conv=True, scope="all").modulated_names("touch")) == 4


def test_four_modalities_are_each_compared_with_the_mean_of_the_others() -> None:
    world = make_world({"image": 12, "text": 12, "smell": 5}, train=64)
    names = ("touch", "image", "text", "smell")
    method = ogm(world, modalities=names, noise=False, alpha=0.3)
    batch = world.batch(method.streams("")[0], np.arange(32))
    out = method({"fused": batch}, "modulated", 0)
    with torch.no_grad():
        shares = method.shares(method.representations(batch))
    sums = [
        float(t.double().softmax(dim=1).gather(1, batch.label[:, None]).sum())
        for t in shares.values()
    ]
    ratios = [3 * s / (sum(sums) - s) for s in sums]
    for m, ratio in zip(names, ratios, strict=True):
        assert float(out.logs[f"ratio/{m}"]) == pytest.approx(ratio, rel=1e-5)
    given = {n: torch.ones_like(p) for n, p in method.named_parameters()}
    method.edit_gradients(given, "modulated", 0)
    for m, ratio in zip(LEARNED, ratios, strict=False):
        factor = 1 - math.tanh(0.3 * ratio) if ratio > 1 else 1.0
        for name in method.modulated_names(m):
            assert given[name].flatten()[0] == pytest.approx(factor, abs=1e-6)
