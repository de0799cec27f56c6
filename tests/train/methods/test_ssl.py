"""SSL: what is perturbed, and what it costs to predict otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.errors import UserError
from outmodal.train.methods import SslConfig, build_method
from outmodal.train.methods.ssl import Ssl, consistency_rows
from tests.train.methods.fakes import TinyLearner, run
from tests.train.methods.viewed import viewed_context, viewed_world, words_learner


def method(**keys: object) -> Ssl:
    built = build_method(SslConfig(unknown="touch", **keys), viewed_context(viewed_world()))
    assert isinstance(built, Ssl)
    return built


@settings(max_examples=20, deadline=None)
@given(classes=st.integers(2, 6), seed=st.integers(0, 1000))
def test_the_loss_is_the_mean_square_of_the_softmaxes_difference(classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 7, classes, generator=g)
    exact = (a.double().softmax(1) - b.double().softmax(1)).square().sum(dim=1) / classes
    assert torch.allclose(consistency_rows(a, b).double(), exact, atol=1e-7)


def test_a_step_is_cross_entropy_and_weighted_consistency() -> None:
    world, one = viewed_world(), method(lambda_consistency=3.0)
    batches = world.step(list(one.streams("train")), 0)
    out = one(batches, "train", 0)
    labelled, x = batches["labelled"], batches["unlabelled"].x["touch"]
    keys = batches["unlabelled"].key ^ (batches["unlabelled"].index << 20)
    noises = [one._noise(x, keys, 0, look) for look in (1, 2)]
    q = [one.classify(one.encode(x + noise)) for noise in noises]
    clean = one.classify(one.encode(labelled.x["touch"]))
    supervised = torch.nn.functional.cross_entropy(clean, labelled.label)
    gap = consistency_rows(*q).mean()
    assert torch.allclose(out.logs["loss/consistency"], gap, atol=1e-6)
    assert torch.allclose(out.loss, supervised + 3.0 * gap, atol=1e-6)


def test_noise_has_the_deviation_and_depends_on_step_sample_and_look() -> None:
    one, keys = method(sigma=0.3), torch.arange(1, 3001)
    x = torch.zeros(3000, 8)
    noise = one._noise(x, keys, 4, 1)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
    assert torch.equal(noise, one._noise(x, keys, 4, 1))
    assert torch.equal(noise[10:20], one._noise(x[:10], keys[10:20], 4, 1))
    for other in (one._noise(x, keys, 5, 1), one._noise(x, keys, 4, 2)):
        assert abs(float((noise * other).mean())) < 0.01


def test_hidden_labels_are_not_read() -> None:
    world, one = viewed_world(), method()
    batches = world.step(list(one.streams("train")), 0)
    blind = replace(batches["unlabelled"], label=torch.zeros(32, dtype=torch.int64))
    loss = one(batches, "train", 0).loss
    assert torch.equal(one({**batches, "unlabelled": blind}, "train", 0).loss, loss)


def test_tokens_get_their_noise_on_the_embeddings() -> None:
    world = viewed_world()
    context = viewed_context(world, words_learner())
    built = build_method(SslConfig(unknown="words", sigma=0.5), context)
    out = built(world.step(list(built.streams("train")), 0), "train", 0)
    assert float(out.logs["loss/consistency"]) > 0
    out.loss.backward()
    assert all(p.grad is not None for p in built.parameters())


def test_whole_numbers_without_embeddings_are_refused() -> None:
    world = viewed_world()
    context = viewed_context(world, TinyLearner("words", 9))
    built = build_method(SslConfig(unknown="words"), context)
    with pytest.raises(UserError, match="reads whole numbers: choose learner bert"):
        built(world.step(list(built.streams("train")), 0), "train", 0)


def test_training_makes_predictions_steady() -> None:
    world, one = viewed_world(), method(sigma=0.5, lambda_consistency=10.0)
    batches = world.step(list(one.streams("train")), 999)
    before = one(batches, "train", 999).logs["loss/supervised"]
    run(one, world)
    assert float(one(batches, "train", 999).logs["loss/supervised"]) < float(before)
