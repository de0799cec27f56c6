"""Pairwise contrastive alignment: its loss, its retrieval, what it exports."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from outmodal.errors import UserError
from outmodal.models.heads import HeadConfig
from outmodal.train.methods.align import Align, AlignConfig
from outmodal.train.methods.align_report import class_means, retrieval, zero_shot
from tests.train.methods.fakes import Passes, World, make_context, make_world, run

ALL = ("touch", "image", "text")


def make(world: World, learners: tuple[str, ...] = ALL, **keys: object) -> Align:
    config = AlignConfig.model_validate({"head": {"dim": 8}, **keys})
    return Align(make_context(world, learners=learners, epochs=6), config)


def plain(method: Align, world: World, keep: torch.Tensor | None = None) -> torch.Tensor:
    """The loss by its formula on the batch of step 0."""
    batch = world.step(list(method.streams("align")), 0)["paired"]
    total = torch.zeros(())
    for a, b in combinations(method.modalities, 2):
        e = [torch.nn.functional.normalize(method.embed(m, batch.x[m]), dim=1) for m in (a, b)]
        if keep is not None:
            e = [t[keep] for t in e]
        logits = e[0] @ e[1].T * method.log_scale.exp().clamp(max=100)
        partner = torch.arange(len(logits))
        ce = torch.nn.functional.cross_entropy
        total = total + 0.5 * (ce(logits, partner) + ce(logits.T, partner))
    return total


def test_loss_is_the_sum_over_all_pairs_both_ways() -> None:
    world = make_world()
    method = make(world)
    out = method(world.step(list(method.streams("align")), 0), "align", 0)
    assert torch.allclose(out.loss, plain(method, world), atol=1e-4)
    named = {"loss/touch_image", "loss/touch_text", "loss/image_text"}
    assert set(out.logs) == {"loss", "logit_scale", *named}
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_rows_that_lack_a_modality_are_neither_positives_nor_negatives() -> None:
    world = make_world()
    method = make(world, ("touch", "image"))
    batch = world.step(list(method.streams("align")), 0)["paired"]
    gone = batch.index[::3].tolist()
    expected = plain(method, world, ~torch.isin(batch.index, torch.tensor(gone)))
    world.absent["train"]["image"] = gone
    out = method(world.step(list(method.streams("align")), 0), "align", 0)
    assert torch.allclose(out.loss, expected, atol=1e-4)


def test_no_pair_at_all_gives_an_attached_zero() -> None:
    world = make_world()
    method = make(world, ("touch", "image"))
    world.absent["train"]["image"] = list(range(400))
    loss = method(world.step(list(method.streams("align")), 0), "align", 0).loss
    assert loss.item() == 0.0
    loss.backward()


def test_scale_starts_at_the_inverse_temperature_and_is_bounded() -> None:
    world = make_world()
    method = make(world, temperature=0.05)
    batches = world.step(list(method.streams("align")), 0)
    assert method(batches, "align", 0).logs["logit_scale"].item() == pytest.approx(20, rel=1e-4)
    with torch.no_grad():
        method.log_scale.fill_(9.0)
    assert method(batches, "align", 0).logs["logit_scale"].item() == pytest.approx(100)


def test_training_aligns_and_evaluation_shows_it() -> None:
    world = make_world(noise=0.2)
    method = make(world, ("image", "text"))
    before = method.evaluate(Passes(world, method))
    run(method, world)
    after = method.evaluate(Passes(world, method))
    for way in ("image_to_text", "text_to_image"):
        assert after[f"{way}/r1_instance"] > before[f"{way}/r1_instance"]
        assert after[f"{way}/r1_class"] > 0.6
        assert after[f"{way}/zero_shot"] > 0.5
    assert set(after) == {
        f"{a}_to_{b}/{name}"
        for a, b in (("image", "text"), ("text", "image"))
        for name in ("r1_instance", "r1_class", "zero_shot")
    }


def test_prototypes_are_optional_and_labels_too() -> None:
    world = make_world()
    method = make(world, ("image", "text"), prototypes=False)
    assert not any("zero_shot" in k for k in method.evaluate(Passes(world, method)))
    for split in ("train", "test"):
        world.labels[split][:] = -1
    method = make(world, ("image", "text"))
    found = method.evaluate(Passes(world, method))
    assert set(found) == {"image_to_text/r1_instance", "text_to_image/r1_instance"}


def test_retrieval_on_a_known_case() -> None:
    gallery = torch.eye(3)
    query = torch.stack([gallery[0], gallery[2], gallery[2]])
    found = retrieval(query, gallery, torch.tensor([0, 1, 1]))
    assert found == {"r1_instance": pytest.approx(2 / 3), "r1_class": 1.0}
    assert retrieval(query[:0], gallery[:0], torch.zeros(0, dtype=torch.int64)) == {}
    unlabelled = retrieval(query, gallery, torch.full((3,), -1))
    assert set(unlabelled) == {"r1_instance"}


def test_class_means_are_unit_means_of_members() -> None:
    e = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [9.0, 9.0]])
    means = class_means(e, torch.tensor([0, 0, 1, -1]), 3)
    half = math.sqrt(0.5)
    assert torch.allclose(means, torch.tensor([[half, half], [0, 1], [0, 0]]))
    assert zero_shot(e[1:3], means, torch.tensor([0, 1])) == {"zero_shot": 0.5}


def test_outputs_of_a_pass() -> None:
    world = make_world()
    method = make(world)
    batch = world.step(list(method.streams("align")), 0)["paired"]
    one = method.infer("embedding:image", batch)
    assert set(one) == {"embedding", "representation", "present"}
    every = method.infer("embedding", batch)
    assert torch.allclose(every["embedding:image"].norm(dim=1), torch.ones(32), atol=1e-5)
    with pytest.raises(UserError, match="'imge'; did you mean 'image'"):
        method.infer("embedding:imge", batch)


def test_export_parts_name_a_modality() -> None:
    method = make(make_world(), head=HeadConfig(kind="mlp", dim=8))
    parts = method.export_parts("image")
    assert parts.learner is method.context.learners["image"]
    assert (parts.head.dim, parts.classifier, parts.feature_norm) == (8, None, "l2")
    with pytest.raises(UserError, match="name one of touch, image, text"):
        method.export_parts(None)
    with pytest.raises(UserError, match="did you mean 'image'"):
        method.export_parts("imge")


def test_fewer_than_two_learners_are_refused() -> None:
    with pytest.raises(UserError, match="two or more"):
        make(make_world(), ("touch",))
    with pytest.raises(UserError, match="no learner encodes it"):
        make(make_world(), ("touch", "image"), modalities=("touch", "text"))
