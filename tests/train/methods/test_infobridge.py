"""InfoBridge: its objective against fp64 sums by hand, contexts, buffer, turns, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.data.draws import Draw
from outmodal.errors import UserError
from outmodal.train.methods import InfoBridge, InfoBridgeConfig, build_method
from outmodal.train.methods.base import StepOutput
from outmodal.train.methods.infobridge_negatives import draw_negatives
from tests.train.methods.fakes import Passes, World, make_context, make_world, run

TWO = ("touch", "image")


def bridge(world: World, modalities: tuple[str, ...] = TWO, **keys: Any) -> InfoBridge:
    context = make_context(world, learners=("touch", "image"))
    made = build_method(InfoBridgeConfig(modalities=modalities, **keys), context)
    assert isinstance(made, InfoBridge)
    return made


def batches(world: World, method: InfoBridge, step: int) -> dict[str, Batch]:
    return world.step(method.streams("train"), step)


def stepped(world: World, method: InfoBridge, step: int) -> StepOutput:
    return method(batches(world, method, step), "train", step)


def by_hand(method: InfoBridge, batch: Batch, step: int, context: Tensor) -> tuple[float, float]:
    """(L_NCE, mi_lb) of two modalities, one pair of samples at a time, fp64."""
    held, gamma = method.queue.rows(), math.log(1 / method.keys.n0)
    with torch.no_grad():
        r = {m: t.double() for m, t in method.representations(batch).items()}
    critic = method.critics[0].double()
    usable = held["held"].bool().all(dim=1)
    drawn = draw_negatives(
        batch.index,
        context,
        held["index"],
        held["context"][:, 0],
        usable,
        method.keys.n0,
        Draw(0, step, "touch-image"),
        same=method.keys.neg == "same_T",
    )
    both = batch.present["touch"] & batch.present["image"] & (batch.label >= 0) & drawn.found

    def log_h(a: Tensor, b: Tensor, t: Tensor, sign: int) -> float:
        with torch.no_grad():
            s = float(critic.score(*critic.projected(a[None], b[None]), t[None])) + gamma
        return -math.log1p(math.exp(-sign * s))

    totals, bounds = [], []
    for n in torch.nonzero(both).flatten().tolist():
        own = r["touch"][n], r["image"][n], context[n]
        places = drawn.rows[n].tolist()
        there = [log_h(own[0], held["r/image"][q].double(), own[2], -1) for q in places]
        back = [log_h(held["r/touch"][q].double(), own[1], own[2], -1) for q in places]
        positive = log_h(*own, 1)
        totals.append(positive + method.keys.n0 * (sum(there) + sum(back)) / len(there + back))
        bounds.append(positive - gamma)
    critic.float()
    return sum(totals) / len(totals), sum(bounds) / len(bounds)


@pytest.mark.parametrize(
    "keys", [{}, {"critic": "bilinear", "neg": "any_T"}, {"n0": 1}, {"context": "const"}]
)
def test_the_objective_by_hand(keys: dict[str, Any]) -> None:
    world = make_world({"image": 12}, train=120)
    world.absent["train"] = {"touch": list(range(20)), "image": list(range(15, 40))}
    world.labels["train"][50:60] = -1
    method = bridge(world, **keys)
    for step in range(3):
        stepped(world, method, step)
    given = batches(world, method, 3)
    batch = next(iter(given.values()))
    context = batch.label.clamp_min(0)
    if method.keys.context == "const":
        context = torch.zeros_like(batch.label)
    wanted, bound = by_hand(method, batch, 3, context)
    out = method(given, "train", 3)
    if method.keys.context == "const":  # which needs no label, unlike the sum by hand
        assert float(out.logs["loss/nce"]) == pytest.approx(wanted, abs=0.2)
        return
    assert float(out.logs["loss/nce"]) == pytest.approx(wanted, abs=1e-4)
    assert float(out.logs["mi_lb"]) == pytest.approx(bound, abs=1e-4)
    task = float(out.logs["loss/task"])
    assert float(out.logs["loss"]) == pytest.approx(task - 0.1 * wanted, abs=1e-4)


def gradients(method: InfoBridge) -> dict[str, Tensor]:
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in method.named_parameters()
    }


def test_both_players_ascend_each_with_its_own_weight() -> None:
    """Encoders and classifier: gradient of L_task - alpha L_NCE. Critics: of -L_NCE."""
    world = make_world({"image": 12}, train=120)
    method = bridge(world, alpha=0.25)
    stepped(world, method, 0)
    before = method.queue.state()
    stepped(world, method, 1).loss.backward()
    found = gradients(method)
    method.zero_grad()
    method.queue.load(before)
    given = batches(world, method, 1)
    batch = next(iter(given.values()))
    r = method.representations(batch)
    task = method.mean_loss(method.fused(r), batch)
    nce, _ = method.conditional(r, batch, 1)
    params = dict(method.named_parameters())
    asked = list(params.values())
    task_by, nce_by = (
        torch.autograd.grad(t, asked, retain_graph=True, allow_unused=True) for t in (task, nce)
    )
    assert float(nce.detach()) < 0
    for name, p, a, b in zip(params, asked, task_by, nce_by, strict=True):
        zero = torch.zeros_like(p)
        share = -1.0 if name.startswith("critics.") else -0.25
        wanted = (zero if a is None else a) + share * (zero if b is None else b)
        assert torch.allclose(found[name], wanted, atol=1e-6), name


def test_one_step_is_the_paper_s_pair_under_sgd() -> None:
    """One gradient of L_task - alpha L_NCE, and for the critics lr / alpha and decay * alpha."""
    world, alpha = make_world({"image": 12}, train=120), 0.25
    ours, wanted = bridge(world, alpha=alpha), bridge(world, alpha=alpha)
    wanted.load_state_dict(ours.state_dict())
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    critics = {"params": list(wanted.critics.parameters()), "lr": 0.1 / alpha}
    held = {id(p) for p in wanted.critics.parameters()}
    rest = {"params": [p for p in wanted.parameters() if id(p) not in held]}
    one = torch.optim.SGD(ours.parameters(), **sgd)
    two = torch.optim.SGD([{**critics, "weight_decay": 0.01 * alpha}, rest], **sgd)
    for step in range(4):
        batch = next(iter(batches(world, ours, step).values()))
        for optimizer in (one, two):
            optimizer.zero_grad()
        stepped(world, ours, step).loss.backward()
        r = wanted.representations(batch)
        nce, _ = wanted.conditional(r, batch, step)
        (wanted.mean_loss(wanted.fused(r), batch) - alpha * nce).backward()
        one.step()
        two.step()
    for name, p in ours.named_parameters():
        assert torch.allclose(p, wanted.get_parameter(name), atol=2e-6), name


def test_turns() -> None:
    world = make_world({"image": 12}, train=128)
    method = bridge(world, update="alternate")
    assert method.steps_per_epoch() == 2 * (128 // 32)
    stepped(world, method, 0)  # fills the buffer
    for step in (1, 2, 3, 4):
        method.zero_grad()
        stepped(world, method, step).loss.backward()
        moved = {n for n, g in gradients(method).items() if g.any()}
        critics = {n for n, p in method.named_parameters() if n.startswith("critics.")}
        assert moved <= critics if step % 2 == 0 else not moved & critics
        assert moved
    assert all(p.requires_grad for p in method.parameters())


def test_pieces_of_a_step_have_one_turn() -> None:
    world = make_world({"image": 12}, train=128)
    method = bridge(world, update="alternate")
    half = next(iter(batches(world, method, 0).values())).rows(slice(0, 16))
    turns = [method._critics_turn(half, number) for number in range(8)]
    assert turns == [True, True, False, False] * 2


def test_the_first_step_has_no_negatives() -> None:
    world = make_world({"image": 12}, train=64)
    for keys in ({}, {"update": "alternate"}):
        method = bridge(world, **keys)
        out = stepped(world, method, 0)
        out.loss.backward()
        assert float(out.logs["loss/nce"]) == 0.0
        assert len(method.queue) == 32


def test_the_buffer_holds_what_was_seen() -> None:
    world = make_world({"image": 12, "text": 12}, train=64)
    world.labels["train"][:10] = -1
    world.absent["train"] = {"touch": list(range(5, 30))}
    method = bridge(world, modalities=("touch", "image", "text"), buffer=50)
    for step in range(3):
        seen = next(iter(batches(world, method, step).values()))
        stepped(world, method, step)
    rows = method.queue.rows()
    assert len(method.queue) <= 50
    assert rows["context"].shape == (len(method.queue), 3)
    assert not any(t.requires_grad for t in rows.values())
    labels = torch.from_numpy(world.labels["train"])
    assert torch.equal(rows["context"][:, 0], labels[rows["index"]])
    assert int(rows["index"].min()) >= 10  # without a label there is no context
    last = int((seen.label >= 0).sum())
    assert rows["index"][-last:].tolist() == seen.index[seen.label >= 0].tolist()
    assert torch.equal(rows["held"][:, 0].bool(), rows["index"] >= 30)


def test_the_state_is_all_of_it() -> None:
    world = make_world({"image": 12}, train=96)
    one = bridge(world, context="cluster", clusters=3)
    one.on_epoch_start(0, "train", Passes(world, one))
    for step in range(2):
        stepped(world, one, step)
    two = bridge(world, context="cluster", clusters=3)
    two.load_state_dict(one.state_dict())
    two.load_method_state(one.method_state())
    outs = [stepped(world, m, 2) for m in (one, two)]
    assert outs[0].loss.equal(outs[1].loss)
    assert one.method_state().keys() == two.method_state().keys() != set()


def test_clusters_are_groups_with_lasting_names() -> None:
    world = make_world({"image": 12}, train=96)
    method = bridge(world, context="cluster", clusters=4)
    passes = Passes(world, method)
    assert method.on_epoch_start(0, "train", passes)["clusters_moved"] == 1.0
    assert method.clusters is not None
    first = method.clusters.clone()
    assert method.on_epoch_start(1, "train", passes)["clusters_moved"] == 0.0
    assert torch.equal(method.clusters, first)
    assert set(first.tolist()) == {0, 1, 2, 3}
    batch = world.batch(method.streams("")[0], np.arange(9))
    assert method.contexts({}, batch).tolist() == [[c] for c in first[:9].tolist()]


def test_levels_cut_the_batch_into_equal_parts() -> None:
    world = make_world({"image": 12}, train=96)
    world.absent["train"] = {"touch": list(range(30))}
    method = bridge(world, context="retrieval", levels=3)
    batch = world.batch(method.streams("")[0], np.arange(90))
    with torch.no_grad():
        r = method.representations(batch)
    levels = method.contexts(r, batch)[:, 0]
    assert set(levels.tolist()) == {0, 1, 2}
    counted = torch.bincount(levels[30:], minlength=3)
    assert counted.tolist() == [20, 20, 20]
    assert not bridge(world, context="retrieval", levels=1).contexts(r, batch).any()


@pytest.mark.parametrize(("context", "values"), [("semantic", 4), ("cluster", 5), ("const", 1)])
def test_a_critic_for_each_pair_knows_every_context(context: str, values: int) -> None:
    world = make_world(train=64)
    method = bridge(world, modalities=("touch", "image", "text"), context=context)
    assert method.pairs() == [("touch", "image"), ("touch", "text"), ("image", "text")]
    assert [c.context.num_embeddings for c in method.critics] == [values] * 3  # type: ignore
    if context != "cluster":
        stepped(world, method, 0)
        out = stepped(world, method, 1)
        each = [float(out.logs[f"mi_lb/{a}-{b}"]) for a, b in method.pairs()]
        assert float(out.logs["mi_lb"]) == pytest.approx(sum(each) / 3, abs=1e-5)


def test_unlabelled_samples_need_another_context() -> None:
    world = make_world({"image": 12}, train=96)
    world.labels["train"][4:] = -1
    world.labels["train"][:4] = np.arange(4)
    for context, expected in (("semantic", 0), ("const", 32)):
        method = bridge(world, context=context)
        method(
            {"fused": world.batch(method.streams("")[0], np.arange(20, 52))}, "train", 0
        ).loss.backward()
        assert len(method.queue) == expected


def test_critics_are_a_group_of_their_own() -> None:
    method = bridge(make_world({"image": 12}, train=64))
    groups = {g["name"]: g["params"] for g in method.param_groups()}
    assert {id(p) for p in groups["critics"]} == {id(p) for p in method.critics.parameters()}
    counts = sum(len(p) for p in groups.values())
    assert counts == len(list(method.parameters()))


def test_it_learns_and_says_how_far_modalities_lie_apart() -> None:
    world = make_world({"image": 12}, train=200, test=100)
    context = make_context(world, learners=("touch", "image"), epochs=5)
    config = InfoBridgeConfig(critic="bilinear", n0=2, buffer=64)
    method = build_method(config, context)
    run(method, world)
    passes = Passes(world, method)
    assert method.evaluate(passes)["top1"] > 0.6
    found = method.diagnose(passes)
    assert {"mmd/touch-image", "mmd_within/touch-image", "modality_gap/touch-image"} <= set(found)
    assert all(math.isfinite(v) for v in found.values())


def test_what_is_refused() -> None:
    world = make_world({"image": 12}, train=64)
    with pytest.raises(UserError, match="fuses 2 or more modalities, got touch"):
        bridge(world, modalities=("touch",))
    world.absent["train"] = {"touch": list(range(32)), "image": list(range(32, 64))}
    method = bridge(world)
    with pytest.raises(UserError, match="has 2 of touch, image"):
        method.on_epoch_start(0, "train", Passes(world, method))
    few = make_world({"image": 12}, train=40)
    crowded = bridge(few, context="cluster", clusters=64)
    with pytest.raises(UserError, match="40 samples cannot be put into 64 clusters"):
        crowded.on_epoch_start(0, "train", Passes(few, crowded))
    for keys in ({"n0": 0}, {"critic": "cosine"}, {"buffer": 1}, {"alpha": -1.0}):
        with pytest.raises(ValidationError):
            InfoBridgeConfig(**keys)  # type: ignore[arg-type]
