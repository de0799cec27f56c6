"""Unsupervised COX as a whole: its stages, its streams, what it may read, its state."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.errors import UserError
from outmodal.train.methods import CoxConfig, CoxUnsupervised
from outmodal.train.methods.cox_sets import DISAGREE, NO_ROLE
from tests.train.methods.fakes import CLASSES, Passes, World, make_context, make_world, run

SMALL = {
    "setting": "unsup",
    "unknown": "touch",
    "vib_hidden": 32,
    "vib_latent": 8,
    "warmup_epochs": 2,
    "boot_epochs": 3,
}


def make(world: World, *, seed: int = 0, epochs: int = 5, **keys: object) -> CoxUnsupervised:
    config = CoxConfig.model_validate({**SMALL, **keys})
    method = config.build(make_context(world, seed=seed, epochs=epochs))
    assert isinstance(method, CoxUnsupervised)
    return method


def at_stage(world: World, stage: str, **keys: object) -> CoxUnsupervised:
    """A method whose sets are formed, as at the start of a stage."""
    method = make(world, **keys)
    for epoch, name in enumerate(("bootstrap", "warmup", "main")):
        method.on_epoch_start(epoch, name, Passes(world, method))
        if name == stage:
            break
    return method


def step(method: CoxUnsupervised, world: World, stage: str, at: int = 3) -> dict[str, Batch]:
    return world.step(list(method.streams(stage)), at)


# --- stages and streams ----------------------------------------------------------------------


def test_stages_add_up() -> None:
    world = make_world(train=100)

    def stages(**keys: object) -> list[tuple[str, int]]:
        return [(s.name, s.epochs) for s in make(world, **keys).stages()]

    assert stages() == [("bootstrap", 1), ("warmup", 1), ("main", 3)]
    assert stages(warmup_epochs=1) == [("bootstrap", 1), ("main", 4)]
    assert stages(warmup_epochs=0) == [("main", 5)]
    paper = stages(warmup_epochs=None, fidelity="paper", epochs=7)
    assert paper == [("bootstrap", 1), ("warmup", 4), ("main", 2)]


@pytest.mark.parametrize("fidelity", ["rec", "paper", "code"])
@pytest.mark.parametrize("known", [1, 2, 3])
def test_each_fidelity_trains_with_any_number_of_known_modalities(
    fidelity: str, known: int
) -> None:
    world = make_world({f"m{k}": 12 for k in range(known)}, train=160, test=40)
    method = make(world, fidelity=fidelity)
    logs = run(method, world)
    assert len(logs) == 5
    assert {"raw_head_accuracy/m0", "anchor_purity", "z_std_min"} <= set(logs[0])
    assert {"pair_purity", "pair_distance", "pair_is_own", "agreement_rate"} <= set(logs[-1])
    metrics = method.evaluate(Passes(world, method))
    assert all(math.isfinite(v) for v in metrics.values())
    assert {"top1", "agreement_rate", "before/agreement_rate"} <= set(metrics)


@pytest.mark.parametrize(
    "keys",
    [
        {"warm_pairs": "class_random"},
        {"im_paired": False},
        {"dist_agg": "rms"},
        {"boot_align": "coral"},
        {"explore": "knn"},
        {"explore": "all_pairs"},
        {"warmup_epochs": 0},
        {"lambda_explore": 0.0, "anchor_class_quota": 0.25},
        {"known_fraction": 0.5},
        {"vib_eval_mean": False, "vib_kl_weight": 0.1},
    ],
)
def test_each_reading_trains(keys: dict[str, object]) -> None:
    world = make_world(train=160, test=40)
    run(make(world, **keys), world)


def test_no_stream_pairs_known_features_with_the_unknown_modality() -> None:
    world = make_world(train=160)
    method = make(world, warm_pairs="class_random")
    run(method, world)
    readers = {name: {m for n, m in world.read if n == name} for name, _ in world.read}
    for name in ("anchor", "disagree", "pool", "survey", "evaluate"):
        assert readers.get(name, {"touch"}) == {"touch"}
    assert readers["known"] == readers["survey_known"] == {"image", "text"}
    assert "labelled" not in readers


def test_the_pairing_of_the_data_set_is_never_seen() -> None:
    """Shuffle the unknown modality against the known ones: each sample keeps role and partner."""
    world = make_world(train=160)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(1))
    other = replace(world, x={s: dict(x) for s, x in world.x.items()})
    other.x["train"]["touch"] = world.x["train"]["touch"][order]
    for stage in ("bootstrap", "warmup", "main"):
        one, two = at_stage(world, stage), at_stage(other, stage)
        assert torch.equal(one.roles[order], two.roles)
    rows = [torch.nonzero(m.roles >= 0).flatten() for m in (one, two)]
    place = {int(r): i for i, r in enumerate(rows[0])}
    same = torch.tensor([place[int(order[r])] for r in rows[1]])
    for a, b in zip(one.partners, two.partners, strict=True):
        assert torch.equal(a[same], b)


def test_no_label_of_the_unknown_modality_is_read() -> None:
    world = make_world(train=160)
    for stage in ("bootstrap", "warmup", "main"):
        method = at_stage(world, stage, warm_pairs="class_random")
        batches = step(method, world, stage)
        held = {k: t.clone() for k, t in method.method_state().items()}
        one = method(batches, stage, 3).loss
        method.load_method_state(held)
        method._call = (-1, 0)
        for name in set(batches) - {"known"}:
            batches[name] = replace(batches[name], label=torch.zeros(32, dtype=torch.int64))
        assert torch.equal(one, method(batches, stage, 3).loss)


# --- one step --------------------------------------------------------------------------------


def test_the_terms_of_each_stage() -> None:
    world = make_world(train=160)
    wanted = {
        "bootstrap": {"agree"},
        "warmup": {"agree", "recon", "heads"},
        "main": {"agree", "recon", "heads", "explore"},
    }
    for stage, names in wanted.items():
        method = at_stage(world, stage)
        out = method(step(method, world, stage), stage, 3)
        assert set(out.logs) == {"loss", *(f"loss/{n}" for n in names)}
        out.loss.backward()
        grads = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None}
        learner = {"learner", "projection", "classifier"}
        assert grads == (learner if stage == "bootstrap" else learner | {"connections", "heads"})


def test_a_step_without_any_set_is_zero_and_keeps_the_gradient() -> None:
    """As a plan of memory and time counts it, which forms no sets."""
    world = make_world(train=160)
    for stage in ("bootstrap", "warmup", "main"):
        method = make(world)
        rows = np.arange(32)
        specs = method.streams(stage)
        out = method({s.name: world.batch(s, rows) for s in specs}, stage, 0)
        assert out.logs["loss/agree"] == 0
        out.loss.backward()
        assert method.classifier.weight.grad is not None


def test_centroid_targets_are_class_means_and_constants() -> None:
    world = make_world(train=160)
    method = at_stage(world, "warmup")
    z, own = _all(method, world)
    for c in range(len(CLASSES)):
        rows = own == c
        assert int(method.means_count[c]) == int(rows.sum())
        if rows.any():
            assert torch.allclose(method.means[c], z[rows].mean(0), atol=1e-5)
    terms = method.centroid_terms(
        method.known_means, method.means, method.means_count >= 5, (0, 0, 0)
    )
    terms["recon"].backward()
    reached = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None}
    assert reached == {"connections"}


def _all(method: CoxUnsupervised, world: World) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        z = method.encode(world.x["train"]["touch"])
        return z, method.classify(z).argmax(dim=1)


def test_classes_with_few_members_have_no_centroid() -> None:
    method = at_stage(make_world(train=160), "warmup")
    alone = torch.tensor([True, False, False, False])
    known, target = method.known_means, method.means
    one = method.centroid_terms(known, target, alone, (0, 0, 0))["recon"]
    target = target.clone()
    target[1:] = 1e6
    assert torch.equal(one, method.centroid_terms(known, target, alone, (0, 0, 0))["recon"])
    none = method.centroid_terms(known, target, torch.zeros(4).bool(), (0, 0, 0))["recon"]
    assert none == 0
    none.backward()


def test_main_anchors_are_the_nearest_with_their_partners_features() -> None:
    world = make_world(train=120)
    method = at_stage(world, "main", select_fraction=0.2)
    z, _ = _all(method, world)
    v = []
    for k, m in enumerate(("image", "text")):
        u = world.x["train"][m]
        v.append(method.connections[k](12**0.5 * u / u.norm(dim=1, keepdim=True)).detach())
    gaps = sum(torch.cdist(z, part, compute_mode="donot_use_mm_for_euclid_dist") for part in v) / 2
    best = gaps.min(dim=1)
    chosen = best.values.argsort()[:24].sort().values
    assert torch.nonzero(method.roles >= 0).flatten().tolist() == chosen.tolist()
    label = torch.from_numpy(world.labels["train"])
    assert torch.equal(method.roles[chosen], label[best.indices[chosen]])
    text = world.x["train"]["text"][best.indices[chosen]]
    unit = 12**0.5 * text / text.norm(dim=1, keepdim=True)
    assert torch.allclose(method.partners[1], unit, atol=1e-5)
    rest = torch.ones(120, dtype=torch.bool)
    rest[chosen] = False
    assert (method.roles[rest] < 0).all()


def test_samples_without_the_unknown_modality_have_no_role() -> None:
    world = make_world(train=160)
    world.absent["train"]["touch"] = list(range(50))
    for stage in ("bootstrap", "main"):
        assert (at_stage(world, stage).roles[:50] == NO_ROLE).all()


def test_the_anchor_batch_carries_its_own_partners() -> None:
    world = make_world(train=160)
    method = at_stage(world, "main")
    batch = step(method, world, "main")["anchor"]
    paired = method._paired(batch)
    rows = torch.nonzero(method.roles >= 0).flatten().tolist()
    for i, index in enumerate(batch.index.tolist()):
        assert torch.equal(paired.x["image"][i], method.partners[0][rows.index(index)])


@pytest.mark.parametrize("pairs", ["centroid", "class_random"])
def test_emergent_pairs_are_right_where_the_bootstrap_is(pairs: str) -> None:
    """Anchors with true labels: the warm-up connects, and the nearest have the right class."""
    world = make_world(train=300, noise=0.1)
    method = make(world, epochs=8, warmup_epochs=5, anchor_class_quota=0.25, warm_pairs=pairs)
    method.on_epoch_start(0, "bootstrap", Passes(world, method))
    truth = torch.from_numpy(world.labels["train"])
    method.roles = torch.where(torch.arange(300) % 3 == 0, truth, NO_ROLE)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    for at in range(200):
        if at % 20 == 0:
            method.on_epoch_start(1, "warmup", Passes(world, method))
        optimizer.zero_grad()
        method(step(method, world, "warmup", at), "warmup", at).loss.backward()
        optimizer.step()
    logs = method.on_epoch_start(5, "main", Passes(world, method))
    assert logs["anchor_purity"] > 0.8
    assert logs["pair_purity"] > 0.6
    assert (method.roles == DISAGREE).any()


# --- state and refusals ----------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["bootstrap", "warmup", "main"])
@pytest.mark.parametrize("pairs", ["centroid", "class_random"])
def test_state_resumes_mid_epoch(stage: str, pairs: str) -> None:
    world = make_world(train=160)
    one = at_stage(world, stage, warm_pairs=pairs)
    one(step(one, world, stage, 0), stage, 0)
    two = make(world, warm_pairs=pairs)
    two.load_state_dict(one.state_dict())
    two.load_method_state({k: t.clone() for k, t in one.method_state().items()})
    for a, b in zip(one.streams(stage), two.streams(stage), strict=True):
        assert a == b
        assert (a.select is None and b.select is None) or np.array_equal(a.select, b.select)
    batches = step(one, world, stage, 1)
    assert torch.equal(one(batches, stage, 1).loss, two(batches, stage, 1).loss)
    assert one.evaluate(Passes(world, one)) == two.evaluate(Passes(world, two))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"refresh": "batch"}, "set method.refresh epoch"),
        ({"dim": 5}, "set method.dim"),
        ({"warmup_epochs": 5}, "would never explore"),
        ({"oom_init": "perceptor_partial"}, "needs method.oom_weights"),
        ({"oom_init": "perceptor"}, "perceptor needs method.oom_weights"),
        ({"oom_weights": "x"}, "leave oom_weights out"),
        ({"select_fraction": 0.001}, "gives no anchor"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(make_world(train=100), **keys)


def test_a_known_modality_that_no_sample_has_is_refused() -> None:
    world = make_world(train=100)
    world.absent["train"]["text"] = list(range(100))
    with pytest.raises(UserError, match=r"'text', one of method.known"):
        at_stage(world, "bootstrap")
    method = make(world, warmup_epochs=0)
    with pytest.raises(UserError, match=r"has all of image, text.*im_paired false"):
        method.on_epoch_start(0, "main", Passes(world, method))


def test_a_class_without_a_labelled_known_sample_is_refused() -> None:
    world = make_world(train=100)
    world.labels["train"][world.labels["train"] == 2] = -1
    with pytest.raises(UserError, match="class 'c' has both a label and 'image'"):
        at_stage(world, "bootstrap")


def test_a_single_class_is_refused() -> None:
    world = make_world(train=100)
    context = replace(make_context(world), classes=("a",))
    with pytest.raises(UserError, match="two classes or more"):
        CoxConfig.model_validate(SMALL).build(context)


def test_three_samples_are_refused() -> None:
    world = make_world(train=3)
    with pytest.raises(UserError, match="of 3 training samples gives no anchor"):
        make(world)
    with pytest.raises(UserError, match="of 3 labelled training samples"):
        CoxConfig(unknown="touch", label_fraction=0.1).build(make_context(world))
