"""Late fusion: means of logits and of probabilities, several labels a sample, the comparators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.train.methods import (
    MissingDetectionConfig,
    MultiTaskConfig,
    NaiveConfig,
    build_method,
)
from outmodal.train.methods.late import LateFusion, micro_f1
from outmodal.train.methods.missing_detection import MissingDetection
from tests.train.methods.fakes import Passes, World, make_context, make_world, run

LEARNED = ("touch", "image")


def made(config: object, world: World, epochs: int = 4) -> LateFusion:
    context = make_context(world, learners=LEARNED, epochs=epochs)
    method = build_method(config, context)  # type: ignore[arg-type]
    assert isinstance(method, LateFusion)
    return method


def step(method: LateFusion, world: World, stage: str = "train"):  # type: ignore[no-untyped-def]
    batches = world.step(list(method.streams(stage)), 0)
    return batches["fused"], method(batches, stage, 0)


def test_means_of_probabilities_in_fp64() -> None:
    world = make_world(train=40, test=20)
    said = [30.0 * torch.randn(50, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    one = made(NaiveConfig(fuse="mean_probs"), world).together(said)
    wanted = torch.stack([s.double().softmax(dim=1) for s in said]).mean(dim=0).log()
    assert torch.allclose(one.double(), wanted, atol=1e-4)
    many = made(NaiveConfig(fuse="mean_probs", answer="multilabel"), world).together(said)
    p = torch.stack([s.double().sigmoid() for s in said]).mean(dim=0)
    p_not = torch.stack([(-s.double()).sigmoid() for s in said]).mean(dim=0)
    assert torch.allclose(many.double(), p.log() - p_not.log(), atol=1e-4)
    plain = made(NaiveConfig(), world).together(said)
    assert torch.equal(plain, torch.stack(said).mean(dim=0))


def test_naive_is_the_cross_entropy_of_the_mean() -> None:
    world = make_world(train=80, test=20)
    world.absent["train"]["image"] = list(range(30))
    method = made(NaiveConfig(), world)
    batch, out = step(method, world)
    logits = method.fused(method.representations(batch)).double()
    assert float(out.loss.detach()) == pytest.approx(
        float(F.cross_entropy(logits, batch.label).detach()), abs=1e-5
    )


def test_multi_task_adds_a_loss_for_each_modality_that_is_there() -> None:
    world = make_world(train=80, test=20)
    world.absent["train"]["image"] = list(range(30))
    method = made(MultiTaskConfig(auxiliary_weight=0.5), world)
    batch, out = step(method, world)
    r = method.representations(batch)
    fused = F.cross_entropy(method.fused(r), batch.label)
    own = []
    for m, layer in zip(LEARNED, method.auxiliary, strict=True):  # type: ignore[arg-type]
        rows = batch.present[m]
        own.append(F.cross_entropy(layer(r[m])[rows], batch.label[rows]))
    assert not batch.present["image"].all()
    assert float(out.loss.detach()) == pytest.approx(
        float((fused + 0.5 * sum(own)).detach()), abs=1e-5
    )
    assert set(out.logs) == {"loss", "loss/fused", "loss/touch", "loss/image"}


def test_missing_detection_learns_a_class_of_its_own() -> None:
    world = make_world(train=80, test=20)
    world.absent["train"]["image"] = list(range(20))
    method = made(MissingDetectionConfig(p_drop_total=0.9), world)
    method.on_epoch_start(2, "train", Passes(world, method))
    batch, out = step(method, world)
    gone = method.gone(batch)  # type: ignore[attr-defined]
    said = method.outputs(method.representations(batch, gone))
    total = torch.zeros(())
    for m in LEARNED:
        assert bool(gone[m].any())
        wanted = torch.where(gone[m] | ~batch.present[m], 4, batch.label)
        total = total + F.cross_entropy(said[m], wanted)
    assert float(out.loss.detach()) == pytest.approx(float(total.detach()), abs=1e-5)


@pytest.mark.parametrize("fuse", ["mean_logits", "mean_probs"])
def test_what_looks_missing_is_left_out(fuse: str) -> None:
    world = make_world(train=40, test=20)
    method = made(MissingDetectionConfig.model_validate({"fuse": fuse}), world)
    assert isinstance(method, MissingDetection)
    a, b = torch.randn(2, 4, 5).unbind()
    a[:, 4] = torch.tensor([9.0, -9.0, 9.0, -9.0])  # the first and the third look missing
    b[:, 4] = torch.tensor([-9.0, -9.0, 9.0, 9.0])
    method.outputs = lambda r: {"touch": a, "image": b}  # type: ignore[method-assign]
    found = method.fused({})

    def mean(*rows: Tensor) -> Tensor:
        if fuse == "mean_logits":
            return torch.stack(rows).mean(dim=0)
        return torch.stack([r.softmax(dim=0) for r in rows]).mean(dim=0).log()

    one, two = a[:, :4], b[:, :4]
    wanted = [mean(two[0]), mean(one[1], two[1]), mean(one[2], two[2]), mean(one[3])]
    assert torch.allclose(found, torch.stack(wanted), atol=1e-5)
    assert method.classifier("touch") is None


def multilabel(world: World, share: float = 1.0) -> World:
    """Targets of four labels, of which several may hold; some samples have none."""

    class Labelled(World):
        def batch(self, spec, index):  # type: ignore[no-untyped-def]
            found = super().batch(spec, index)
            scores = self.x[spec.split]["image"][found.index][:, :4]
            target = (scores > 0).float()
            target[found.index >= share * len(self.labels[spec.split])] = torch.nan
            bare = target.isnan().all()
            return replace(found, target=None if bare else target)

    return Labelled(world.x, world.labels, world.absent, world.read)


def test_several_labels_a_sample() -> None:
    world = multilabel(make_world(train=300, test=100), share=0.8)
    world.labels["train"][:] = -1  # no class is needed
    method = made(NaiveConfig(answer="multilabel"), world, epochs=6)
    batch, out = step(method, world)
    rows = batch.target.isfinite().all(dim=1)
    assert 0 < int(rows.sum()) < len(rows)
    logits = method.fused(method.representations(batch))
    wanted = F.binary_cross_entropy_with_logits(logits[rows], batch.target[rows])
    assert float(out.loss.detach()) == pytest.approx(float(wanted.detach()), abs=1e-5)
    run(method, world)
    found = method.evaluate(Passes(world, method))
    assert found["micro_f1"] > 0.85 > found["miss_image/micro_f1"]
    assert {"average/micro_f1", "only_touch/micro_f1"} <= set(found)


def test_a_batch_without_targets_changes_nothing() -> None:
    world = multilabel(make_world(train=40, test=20), share=0.0)
    method = made(NaiveConfig(answer="multilabel"), world)
    _, out = step(method, world)
    out.loss.backward()
    assert float(out.loss.detach()) == 0
    assert not any(p.grad is not None and p.grad.any() for p in method.parameters())


def test_targets_that_are_no_labels() -> None:
    world = multilabel(make_world(train=40, test=20), share=0.0)
    method = made(NaiveConfig(answer="multilabel"), world)
    with pytest.raises(UserError, match=r"none of 40 samples .* has a `.target.npy`"):
        method.on_epoch_start(0, "train", Passes(world, method))
    batch = world.batch(method.streams("train")[0], np.arange(8))
    for target in (torch.rand(8, 3), torch.full((8, 4), 2.5)):
        with pytest.raises(UserError, match="vectors of 4 numbers from 0 to 1"):
            method.answered(replace(batch, target=target))
    context = replace(method.context, classes=())
    with pytest.raises(UserError, match="list them as classes in the data set's manifest"):
        build_method(NaiveConfig(answer="multilabel"), context)


def test_micro_f1() -> None:
    said = torch.tensor([[True, False], [True, True]])
    truth = torch.tensor([[True, True], [False, True]])
    assert micro_f1(said, truth) == pytest.approx(2 * 2 / (3 + 3))
    assert micro_f1(said & False, truth & False) == 0
    assert np.isnan(micro_f1(said[:0], truth[:0]))
