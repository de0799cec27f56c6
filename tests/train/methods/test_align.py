"""Pairwise contrastive alignment: its loss, its retrieval, what it exports."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from outmodal.errors import UserError
from outmodal.models.heads import HeadConfig, ProjectionHead
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
        logits = e[0] @ e[1].T * method.contrast.scale()
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
    method = make(world, objective={"name": "clip", "temperature": 0.05})
    batches = world.step(list(method.streams("align")), 0)
    assert method(batches, "align", 0).logs["logit_scale"].item() == pytest.approx(20, rel=1e-4)
    learned = method.contrast.scale.log_scale
    assert learned is not None
    with torch.no_grad():
        learned.fill_(math.log(100.0) + 0.01)  # a step too far
    assert method(batches, "align", 0).logs["logit_scale"].item() == pytest.approx(99, rel=1e-3)


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

    def cosine(q: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return query[q] @ gallery[c].T

    found = retrieval(cosine, torch.tensor([0, 1, 1]))
    assert found == {"r1_instance": pytest.approx(2 / 3), "r1_class": 1.0}
    assert retrieval(cosine, torch.zeros(0, dtype=torch.int64)) == {}
    unlabelled = retrieval(cosine, torch.full((3,), -1))
    assert set(unlabelled) == {"r1_instance"}


def test_class_means_are_unit_means_of_members() -> None:
    e = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [9.0, 9.0]])
    means = class_means(e, torch.tensor([0, 0, 1, -1]), 3)
    half = math.sqrt(0.5)
    assert torch.allclose(means, torch.tensor([[half, half], [0, 1], [0, 0]]))
    assert zero_shot(e[1:3] @ means.T, torch.tensor([0, 1])) == {"zero_shot": 0.5}


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
        make(make_world(), ("touch", "image"), modalities=("touch", "txt"))


# --- objectives, vectors, bad values ---------------------------------------------------------


@pytest.mark.parametrize("name", ["clip_ib", "siglip", "symile", "gram", "triangle", "ova_ib"])
def test_training_lowers_every_objective(name: str) -> None:
    world = make_world({"image": 12, "text": 12, "sound": 10}, train=160, noise=0.2)
    three = ("image", "text", "sound")
    method = make(world, three, objective={"name": name}, head={"dim": 16})
    batches = world.step(list(method.streams("align")), 0)
    before = method(batches, "align", 1).loss.item()
    run(method, world)
    assert method(batches, "align", 1).loss.item() < 0.9 * before


def test_a_vector_without_a_learner_gets_a_head() -> None:
    world = make_world()
    keys = {"modalities": ["touch", "text"], "vector_norm": "l2_sqrtd"}
    method = make(world, ("touch",), **keys)
    head = method.projections[1]
    assert isinstance(head, ProjectionHead)
    assert (head.inputs, head.dim) == (12, 8)
    batch = world.step(list(method.streams("align")), 0)["paired"]
    r = method.infer("representation", batch)
    assert set(r) == {f"{k}:{m}" for k in ("representation", "present") for m in ("touch", "text")}
    assert torch.allclose(r["representation:text"].norm(dim=1), torch.tensor(12.0).sqrt())
    assert method.export_parts("touch").head.dim == 8
    with pytest.raises(UserError, match=r"'text' is a vector of the data set.*export one of touch"):
        method.export_parts("text")


def test_without_learners_all_vectors_are_aligned() -> None:
    world = make_world()
    context = make_context(world, learners=ALL)
    vectors = replace(context, learners={}, dims={"image": 12, "text": 12})
    assert AlignConfig().build(vectors).modalities == ("image", "text")


def test_a_headless_vector_is_the_shared_space() -> None:
    world = make_world()
    keys = {"modalities": ["touch", "image"], "headless": ["image"], "head": {"dim": 12}}
    method = make(world, ("touch",), **keys)
    batch = world.step(list(method.streams("align")), 0)["paired"]
    out = method.infer("embedding", batch)
    expected = torch.nn.functional.normalize(batch.x["image"], dim=1)
    assert torch.allclose(out["embedding:image"], expected)
    assert not [n for n, _ in method.named_parameters() if n.startswith("projections.1")]
    run(method, world)
    with pytest.raises(UserError, match=r"'image' has 12 entries, the shared space 8: set method"):
        make(world, ("touch",), **{**keys, "head": {"dim": 8}})
    with pytest.raises(UserError, match=r"method\.headless has 'touch', which is no vector"):
        make(world, ("touch",), **{**keys, "headless": ["touch"]})


def test_the_objectives_own_score_serves_retrieval() -> None:
    world = make_world()
    method = make(world, objective={"name": "gram"})
    units = method.infer("embedding", world.step(list(method.streams("align")), 0)["paired"])
    e = {m: units[f"embedding:{m}"] for m in ALL}
    query = {m: e[m] for m in ("touch", "text")}
    got = method.score(query, e["image"], "image")
    assert torch.equal(got, method.contrast.score(query, e["image"], "image"))
    assert got.max() <= 0


def test_an_mlp_projector_scores_with_the_weights_of_the_run() -> None:
    world = make_world()
    method = make(world, objective={"name": "ova_ib", "projector": "mlp"})
    state = torch.get_rng_state()
    first = method.evaluate(Passes(world, method))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == method.evaluate(Passes(world, method))
    run(method, world)
    assert method.evaluate(Passes(world, method)) != first


def test_bad_values_are_named_at_once_or_when_asked_for() -> None:
    world = make_world()
    method = make(world)
    assert method.suspects() == ""
    world.x["train"]["text"][:, 0] = torch.inf
    batches = world.step(list(method.streams("align")), 0)
    with pytest.raises(UserError, match=r"modality 'text'.*NaN or infinite entries"):
        method(batches, "align", 0)
    method(batches, "align", 1).loss.backward()
    assert not all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    assert method.suspects() == "embeddings of 'text' are not finite"


def test_large_half_precision_embeddings_do_not_overflow() -> None:
    world = make_world()
    method = make(world)
    encoded = method.encode(world.step(list(method.streams("align")), 0), "align", 0)
    large = {m: (e / e.abs().max() * 6e4).half() for m, e in encoded.items()}
    batches = world.step(list(method.streams("align")), 0)
    expected = method.objective({m: e.float() for m, e in large.items()}, batches, "align", 0)
    got = method.objective(large, batches, "align", 0)
    assert torch.allclose(got.loss, expected.loss)
    rounded = make(world, similarity="bf16")
    rounded.load_state_dict(method.state_dict())
    assert torch.allclose(
        rounded(batches, "align", 0).loss, method(batches, "align", 0).loss, rtol=0.02
    )


def test_bad_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="ova-ib"):
        AlignConfig.model_validate({"objective": {"name": "ova-ib"}})
    with pytest.raises(UserError, match="defined for 3 modalities only, got 2: image, text"):
        make(make_world(), ("image", "text"), objective={"name": "triangle"})
    paper = AlignConfig.model_validate({"objective": {"name": "ova_ib", "fidelity": "paper"}})
    assert paper.resolved().objective.model_dump()["ridge_floor"] == 0.0
