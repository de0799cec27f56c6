"""MMPareto: how two gradients become one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outmodal.train.methods import MmPareto, MmParetoConfig, build_method
from outmodal.train.methods.mmpareto import combined, weight
from tests.train.methods.fakes import make_context, make_world


def pair(seed: int, against: bool) -> tuple[list[Tensor], list[Tensor]]:
    g = torch.Generator().manual_seed(seed)
    a = [torch.randn(s, generator=g) for s in ((3, 4), (5,))]
    b = [torch.randn(t.shape, generator=g) * 2 - (2.0 if against else -2.0) * t for t in a]
    return a, b


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), against=st.booleans())
def test_the_weight_is_a_half_or_that_of_the_least_norm(seed: int, against: bool) -> None:
    a, b = pair(seed, against)
    x, y = (torch.cat([t.flatten() for t in p]).double() for p in (a, b))
    found = float(weight(a, b))
    if float(x @ y) > 0:
        assert found == 0.5
        return
    shares = torch.linspace(0.001, 0.999, 999).double()
    lengths = (shares[:, None] * x + (1 - shares[:, None]) * y).norm(dim=1)
    assert found == pytest.approx(float(shares[lengths.argmin()]), abs=2e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), against=st.booleans())
def test_each_tensor_is_as_long_as_in_the_sum_times_gamma(seed: int, against: bool) -> None:
    a, b = pair(seed, against)
    total = [p + q for p, q in zip(a, b, strict=True)]
    share = float(weight(a, b))
    for out, p, q, t in zip(combined(a, total, 1.5), a, b, total, strict=True):
        new = 2 * share * p.double() + 2 * (1 - share) * q.double()
        wanted = 1.5 * new * max(1.0, float(t.double().norm() / new.norm()))
        assert torch.allclose(out.double(), wanted, atol=1e-4)


def test_nothing_comes_of_nothing() -> None:
    zero = [torch.zeros(3)]
    assert combined(zero, zero, 1.5)[0].tolist() == [0.0] * 3
    assert weight(zero, zero) == pytest.approx(0.001)
    assert weight([torch.ones(2)], [torch.zeros(2)]) == pytest.approx(0.001)


def test_a_step_by_hand() -> None:
    """Two micro-batches: gradients of the joint loss and of each own loss taken apart in fp64."""
    world = make_world({"image": 12}, train=64)
    world.absent["train"]["touch"] = [1, 2, 3]
    context = make_context(world, learners=("touch", "image"))
    method = build_method(MmParetoConfig(gamma=1.2), context)
    assert isinstance(method, MmPareto)
    parts = [world.batch(method.streams("")[0], np.arange(16 * i, 16 * i + 16)) for i in (0, 1)]
    for batch in parts:
        (method({"fused": batch}, "train", 0).loss / 2).backward()
    params = dict(method.named_parameters())
    held = {n: p.grad.clone() for n, p in params.items() if p.grad is not None}
    given = {n: t.clone() for n, t in held.items()}
    method.edit_gradients(held, "train", 0)
    method.double()
    joint: dict[str, Tensor] = {}
    for batch in parts:
        wide = {m: x.double() for m, x in batch.x.items()}
        r = {m: method.encode(m, wide[m]) for m in method.modalities}
        logits = torch.cat([r[m] for m in method.modalities], dim=1) @ method.joint.weight.T
        loss = torch.nn.functional.cross_entropy(logits + method.joint.bias, batch.label) / 2
        names = [n for m in method.modalities for n in method.encoder_names(m)]
        found = torch.autograd.grad(loss, [method.get_parameter(n) for n in names])
        joint = {n: g + joint.get(n, 0) for n, g in zip(names, found, strict=True)}
    for m in method.modalities:
        names = method.encoder_names(m)
        made = combined([joint[n] for n in names], [given[n].double() for n in names], 1.2)
        for name, wanted in zip(names, made, strict=True):
            assert torch.allclose(held[name].double(), wanted, atol=1e-4), name
    assert all(torch.equal(held[n], given[n]) for n in held if not n.startswith("learners."))
    assert method._joint == {}


def test_vectors_have_no_gradient_to_combine() -> None:
    world = make_world({"image": 12, "text": 12}, train=64)
    context = make_context(world, learners=("touch",))
    method = build_method(MmParetoConfig(modalities=("image", "text")), context)
    out = method({"fused": world.batch(method.streams("")[0], np.arange(16))}, "train", 0)
    out.loss.backward()
    held = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    given = {n: t.clone() for n, t in held.items()}
    method.edit_gradients(held, "train", 0)
    assert given
    assert all(torch.equal(t, given[n]) for n, t in held.items())
