"""The baselines: what they read, what they minimise, what they hand on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.train.methods import (
    CoxConfig,
    EntMinConfig,
    ErmConfig,
    MethodConfig,
    RandomConfig,
    build_method,
)
from outmodal.train.methods.erm import Erm
from tests.train.methods.fakes import Passes, make_context, make_world, run


def test_every_method_is_known_by_its_name() -> None:
    adapter = TypeAdapter(MethodConfig)
    for name in ("cox", "erm", "entmin", "random"):
        assert adapter.validate_python({"name": name, "unknown": "touch"}).name == name
    assert adapter.validate_python({"name": "align"}).name == "align"


def test_the_labelled_set_is_the_same_for_every_method() -> None:
    world = make_world()
    configs = [
        ErmConfig(unknown="touch"),
        EntMinConfig(unknown="touch"),
        RandomConfig(unknown="touch"),
        CoxConfig(unknown="touch"),
    ]
    methods = [build_method(c, make_context(world, seed=3)) for c in configs]
    sets = [m.supervision.labelled for m in methods]
    assert all(np.array_equal(sets[0], s) for s in sets)
    assert len(sets[0]) == 40
    steps = {m.steps_per_epoch() for m in methods if not isinstance(m, type(methods[2]))}
    assert steps == {400 // 32}
    other = build_method(configs[0], make_context(world, seed=4)).supervision.labelled
    assert not np.array_equal(sets[0], other)


def test_the_same_learner_for_every_method() -> None:
    world = make_world()
    dims, starts = set(), []
    for config in (ErmConfig(unknown="touch"), CoxConfig(unknown="touch")):
        method = build_method(config, make_context(world))
        dims.add((method.dim, method.norm))
        starts.append(method.projection.layers[0].weight)
    assert dims == {(12, "l2_sqrtd")}
    assert torch.equal(*starts)


def test_features_have_length_sqrt_d() -> None:
    world = make_world()
    method = build_method(ErmConfig(unknown="touch", dim=9), make_context(world))
    z = method.encode(world.x["train"]["touch"][:5])
    assert torch.allclose(z.norm(dim=1), torch.full((5,), 3.0))


def test_erm_reads_labelled_samples_only_and_averages_them() -> None:
    world = make_world()
    method = build_method(ErmConfig(unknown="touch"), make_context(world))
    specs = method.streams("train")
    assert [s.name for s in specs] == ["labelled"]
    assert np.array_equal(specs[0].select, method.supervision.labelled)
    batches = world.step(specs, 0)
    batch = batches["labelled"]
    out = method(batches, "train", 0)
    logits = method.classify(method.encode(batch.x["touch"]))
    expected = torch.nn.functional.cross_entropy(logits, batch.label)
    assert torch.allclose(out.loss, expected)
    assert torch.allclose(out.logs["loss/supervised"], expected)
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_erm_smooths_labels_and_mixes_neighbours() -> None:
    world = make_world()
    config = ErmConfig.model_validate(
        {"unknown": "touch", "smoothing": 0.2, "mixing": {"mixup": 1.0}}
    )
    method = build_method(config, make_context(world))
    assert isinstance(method, Erm)
    batch = world.step(list(method.streams("train")), 0)["labelled"]
    assert batch.mixed is not None
    share = batch.mixed.share[:, None]
    one_hot, other = (F.one_hot(t, 4).float() for t in (batch.label, batch.mixed.label))
    soft = 0.8 * (share * one_hot + (1 - share) * other) + 0.2 / 4
    logits = method.classify(method.encode(batch.x["touch"]))
    out = method({"labelled": batch}, "train", 0)
    assert float(out.loss) == pytest.approx(float(F.cross_entropy(logits, soft)), rel=1e-5)


def test_entmin_adds_the_weighted_mean_entropy() -> None:
    world = make_world()
    config = EntMinConfig(unknown="touch", lambda_entropy=0.3)
    method = build_method(config, make_context(world))
    batches = world.step(method.streams("train"), 0)
    out = method(batches, "train", 0)
    q = method.classify(method.encode(batches["unlabelled"].x["touch"])).softmax(dim=1)
    entropy = -(q * q.log()).sum(dim=1).mean()
    assert torch.allclose(out.logs["loss/entropy"], entropy, atol=1e-6)
    assert torch.allclose(out.loss, out.logs["loss/supervised"] + 0.3 * entropy, atol=1e-6)
    hidden = set(batches["unlabelled"].index.tolist())
    assert not hidden & set(method.supervision.labelled.tolist())


def test_entmin_does_not_read_hidden_labels() -> None:
    world = make_world()
    method = build_method(EntMinConfig(unknown="touch"), make_context(world))
    batches = world.step(method.streams("train"), 0)
    wrong = replace(batches["unlabelled"], label=torch.zeros(32, dtype=torch.int64))
    changed = method({**batches, "unlabelled": wrong}, "train", 0)
    assert torch.equal(method(batches, "train", 0).loss, changed.loss)


def test_everything_labelled_leaves_no_unlabelled_stream() -> None:
    world = make_world()
    method = build_method(EntMinConfig(unknown="touch", label_fraction=1.0), make_context(world))
    batches = world.step(method.streams("train"), 0)
    assert set(batches) == {"labelled"}
    assert torch.isfinite(method(batches, "train", 0).loss)


def test_samples_without_the_modality_do_not_count() -> None:
    world = make_world()
    method = build_method(ErmConfig(unknown="touch"), make_context(world))
    world.absent["train"]["touch"] = method.supervision.labelled.tolist()
    batches = world.step(method.streams("train"), 0)
    loss = method(batches, "train", 0).loss
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters())


def test_random_has_epochs_without_steps() -> None:
    world = make_world()
    method = build_method(RandomConfig(unknown="touch"), make_context(world))
    assert sum(s.epochs for s in method.stages()) == method.context.epochs
    assert method.steps_per_epoch() == 0
    metrics = method.evaluate(Passes(world, method))
    assert 0.0 <= metrics["top1"] <= metrics["top5"] <= 1.0
    with pytest.raises(RuntimeError, match="no training steps"):
        method({}, "untrained", 0)


def test_erm_learns_and_evaluates() -> None:
    world = make_world(noise=0.3)
    method = build_method(ErmConfig(unknown="touch", label_fraction=0.5), make_context(world))
    before = method.evaluate(Passes(world, method))["top1"]
    run(method, world)
    after = method.evaluate(Passes(world, method))
    assert after["top1"] > max(before, 0.4)
    assert after["top5"] == 1.0  # four classes


def test_evaluation_leaves_out_samples_without_the_modality() -> None:
    world = make_world()
    method = build_method(ErmConfig(unknown="touch"), make_context(world))
    logits = method.classify(method.encode(world.x["test"]["touch"]))
    hits = logits.argmax(dim=1) == torch.from_numpy(world.labels["test"])
    world.absent["test"]["touch"] = torch.nonzero(~hits).flatten().tolist()
    assert method.evaluate(Passes(world, method))["top1"] == 1.0


def test_outputs_of_a_pass() -> None:
    world = make_world()
    method = build_method(ErmConfig(unknown="touch"), make_context(world))
    spec = method.evaluation()
    batch = world.batch(spec, np.arange(6))
    r = method.learner(batch.x["touch"])
    out = method.infer("embedding:touch", batch)
    assert torch.equal(out["representation"], r)
    assert torch.equal(out["embedding"], method.projection(r))
    assert set(method.infer("logits", batch)) == {"logits", "present"}
    assert set(method.infer("z", batch)) == {"logits", "present", "z"}
    with pytest.raises(UserError, match="no encoder of 'image'"):
        method.infer("embedding:image", batch)


def test_export_parts_are_the_trained_modules() -> None:
    world = make_world()
    method = build_method(ErmConfig(unknown="touch"), make_context(world))
    for name in (None, "touch"):
        parts = method.export_parts(name)
        assert parts.learner is method.learner
        assert parts.head is method.projection
        assert parts.classifier is method.classifier
        assert parts.feature_norm == "l2_sqrtd"
    with pytest.raises(UserError, match="'tuch'; did you mean 'touch'"):
        method.export_parts("tuch")


def test_a_modality_without_learner_is_named() -> None:
    context = make_context(make_world())
    with pytest.raises(UserError, match=r"method\.unknown is 'toch'.*did you mean 'touch'"):
        Erm(context, ErmConfig(unknown="toch"))


def test_without_known_features_z_has_the_learners_size() -> None:
    method = build_method(ErmConfig(unknown="touch"), make_context(make_world({})))
    assert method.dim == method.learner.dim
