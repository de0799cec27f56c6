"""COX as a whole: its keys, its streams, its step, its refresh, its state."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.errors import UserError
from outmodal.train.methods import CoxConfig
from outmodal.train.methods.cox import Cox
from outmodal.train.methods.cox_config import PRESETS, CoxChoices
from outmodal.train.methods.cox_report import instance_recall
from outmodal.train.methods.cox_sets import DISAGREE, NO_ROLE
from tests.train.methods.fakes import CLASSES, Passes, World, make_context, make_world, run

INSTANCE = ("r1_instance", "r5_instance", "map_instance")
SMALL = {"unknown": "touch", "vib_hidden": 32, "vib_latent": 8, "warmup_epochs": 2}


def make(world: World, *, seed: int = 0, epochs: int = 8, **keys: object) -> Cox:
    config = CoxConfig.model_validate({**SMALL, **keys})
    return Cox(make_context(world, seed=seed, epochs=epochs), config)


def with_sets(world: World, **keys: object) -> Cox:
    """A method whose sets are formed, as at the start of exploration."""
    method = make(world, **keys)
    method.on_epoch_start(method.choices.warmup_epochs, "explore", Passes(world, method))
    return method


# --- keys ------------------------------------------------------------------------------------


def test_every_open_decision_is_a_key_and_has_a_preset() -> None:
    assert set(CoxChoices.model_fields) <= set(CoxConfig.model_fields)
    assert set(PRESETS) == {"rec", "paper", "code"}
    assert CoxConfig(unknown="touch").choices() == PRESETS["rec"] == CoxChoices()


def test_defaults_are_those_of_the_method_notes() -> None:
    c, keys = CoxConfig(unknown="touch").choices(), CoxConfig(unknown="touch")
    assert (c.heads_on, c.head_refit_epochs, c.vib_eval_mean) == ("mapped", 1, True)
    assert (c.recon_grad_scale, c.feat_norm, c.lambda_agree) == (1.0, "l2_sqrtd", 1.0)
    assert (c.explore, c.explore_kl, c.anchor_ema) == ("mean_posterior", "d_to_a", 0.99)
    assert (c.warmup_epochs, c.refresh, c.anchors) == (5, "epoch", "labelled_agreement")
    assert (keys.vib_hidden, keys.vib_latent, keys.vib_kl_weight) == (1024, 256, 0.0)
    assert (keys.label_fraction, keys.select_fraction, keys.lambda_explore) == (0.1, 0.1, 1.0)
    assert (keys.knn, keys.batch_anchors, keys.anchor_class_quota) == (5, 8, None)


def test_a_key_wins_over_the_preset() -> None:
    config = CoxConfig(unknown="touch", fidelity="paper", heads_on="mapped")
    assert config.choices().heads_on == "mapped"
    assert config.choices().explore == "all_pairs"


def test_resolved_writes_out_every_key_and_means_the_same() -> None:
    config = CoxConfig(unknown="touch", fidelity="code", warmup_epochs=1)
    full = config.resolved()
    assert isinstance(full, CoxConfig)
    unset = {k for k in CoxChoices.model_fields if getattr(full, k) is None}
    assert not unset
    assert full.choices() == config.choices()
    assert CoxConfig.model_validate(full.model_dump()) == full


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"known": ("image", "touch")}, "which is method.unknown"),
        ({"known": ("imge",)}, "no vector modality.*did you mean 'image'"),
        ({"known": ("image", "image")}, "twice"),
        ({"heads_on": "raw", "dim": 5}, "set method.dim"),
        ({"warmup_epochs": 8}, "would never explore"),
        ({"unknown": "toch"}, "did you mean 'touch'"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(make_world(), **keys)


def test_no_known_features_is_an_error_with_a_remedy() -> None:
    with pytest.raises(UserError, match="outmodal embed"):
        make(make_world({}))


@pytest.mark.parametrize("fidelity", ["rec", "paper", "code"])
def test_each_fidelity_trains(fidelity: str) -> None:
    world = make_world(train=160, test=80)
    method = make(
        world, epochs=4, fidelity=fidelity, warmup_epochs=None if fidelity == "paper" else 1
    )
    logs = run(method, world)
    assert len(logs) == 4
    metrics = method.evaluate(Passes(world, method))
    assert all(math.isfinite(v) for v in metrics.values())
    assert {"top1", "top5", "agreement_rate", "before/agreement_rate"} <= set(metrics)


# --- streams ---------------------------------------------------------------------------------


def test_streams_of_the_warm_up() -> None:
    method = make(make_world())
    labelled, known = method.streams("warmup")
    assert labelled.modalities == ("touch", "image", "text")
    assert np.array_equal(labelled.select, method.supervision.labelled)
    assert (known.modalities, known.select) == (("image", "text"), None)
    assert {labelled.batch, known.batch} == {method.context.batch}


def test_no_stream_pairs_known_features_with_unlabelled_samples() -> None:
    world = make_world()
    method = make(world, epochs=4)
    run(method, world)
    readers = {name: {m for n, m in world.read if n == name} for name, _ in world.read}
    assert readers["known"] == readers["survey_known"] == {"image", "text"}
    for name in ("anchor", "disagree", "survey", "evaluate"):
        assert readers[name] == {"touch"}
    # different names salt different orders
    names = [s.name for s in method.streams("explore")]
    assert names == ["labelled", "known", "anchor", "disagree"]
    rows = {
        s.name: set(s.select.tolist()) for s in method.streams("explore") if s.select is not None
    }
    assert not rows["labelled"] & (rows["anchor"] | rows["disagree"])
    assert not rows["anchor"] & rows["disagree"]


def test_batch_refresh_streams_all_unlabelled_samples() -> None:
    method = make(make_world(), refresh="batch")
    specs = {s.name: s for s in method.streams("explore")}
    assert set(specs) == {"labelled", "known", "unlabelled"}
    assert np.array_equal(specs["unlabelled"].select, method.supervision.unlabelled)
    assert specs["unlabelled"].modalities == ("touch",)


def test_stages_add_up_and_paper_has_no_warm_up() -> None:
    world = make_world()
    assert [(s.name, s.epochs) for s in make(world).stages()] == [("warmup", 2), ("explore", 6)]
    paper = make(world, warmup_epochs=None, fidelity="paper")
    assert [(s.name, s.epochs) for s in paper.stages()] == [("explore", 8)]


# --- one step --------------------------------------------------------------------------------


def step(method: Cox, world: World, stage: str, at: int = 3) -> dict[str, Batch]:
    return world.step(list(method.streams(stage)), at)


@pytest.mark.parametrize("known", [1, 2, 3])
@pytest.mark.parametrize("stage", ["warmup", "explore"])
def test_every_parameter_gets_a_gradient(known: int, stage: str) -> None:
    world = make_world({f"m{k}": 10 + k for k in range(known)})
    method = with_sets(world)
    out = method(step(method, world, stage), stage, 3)
    out.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())
    groups = method.param_groups()
    assert [g["name"] for g in groups] == ["learner", "connections", "heads"]
    listed = [id(p) for g in groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in method.parameters())


def slow_recon(method: Cox, batch: Batch, at: int, names: tuple[str, ...]) -> Tensor:
    """L1 by its definition, over the known modalities in `names`."""
    z = method.encode(batch.x["touch"])
    total = torch.zeros(())
    for k, name in enumerate(method.known):
        if name in names:
            u = batch.x[name] / batch.x[name].norm(dim=1, keepdim=True) * 12**0.5
            mean, log_var = method.connections[k].encode(u)
            w = mean + torch.exp(log_var / 2) * _noise(method, at, k)
            total = total + ((method.connections[k].decoder(w) - z) ** 2).mean()
    return total


def test_reconstruction_is_the_sum_over_known_of_mean_squares() -> None:
    world = make_world()
    method = make(world)
    batches = step(method, world, "warmup")
    logged = method(batches, "warmup", 3).logs["loss/recon"]
    expected = slow_recon(method, batches["labelled"], 3, ("image", "text"))
    assert torch.allclose(logged, expected, atol=1e-5)


def _noise(method: Cox, at: int, k: int) -> Tensor:
    from outmodal.train.gather import seeded_normal

    return seeded_normal(32, 8, method.context.seed, at, 0, k, 0)


def test_loss_is_the_weighted_sum_of_the_logged_terms() -> None:
    world = make_world()
    keys = {"vib_kl_weight": 0.1, "lambda_agree": 0.5, "lambda_explore": 2.0, "head_weight": 0.25}
    method = with_sets(world, **keys)
    logs = method(step(method, world, "explore"), "explore", 3).logs
    weights = {"recon": 1, "prior": 0.1, "supervised": 1, "heads": 0.25, "agree": 0.5, "explore": 2}
    assert set(logs) == {"loss", *(f"loss/{name}" for name in weights)}
    total = sum(w * logs[f"loss/{name}"] for name, w in weights.items())
    assert torch.allclose(logs["loss"], total, atol=1e-5)


@pytest.mark.parametrize("refresh", ["epoch", "batch"])
def test_labels_of_unlabelled_samples_are_never_read(refresh: str) -> None:
    world = make_world()
    method = with_sets(world, refresh=refresh)
    batches = step(method, world, "explore")
    method.anchor_mean.start(torch.full((1, 4), 0.25))
    one = method(batches, "explore", 3).loss
    method.anchor_mean.pending.zero_()
    method._call = (-1, 0)
    hidden = [n for n in batches if n not in ("labelled", "known")]
    assert hidden
    for name in hidden:
        batches[name] = replace(batches[name], label=torch.zeros(32, dtype=torch.int64))
    assert torch.equal(one, method(batches, "explore", 3).loss)


def test_heads_train_on_constants_and_move_nothing_else() -> None:
    world = make_world()
    method = make(world)
    batches = step(method, world, "warmup")
    method.head_loss(batches["known"], (0, 0, 0)).backward()
    moved = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None}
    assert moved == {"heads"}


def test_raw_heads_read_the_known_features_themselves() -> None:
    world = make_world()
    method = make(world, heads_on="raw")
    batch = step(method, world, "warmup")["known"]
    got = method.head_loss(batch, (0, 0, 0))
    expected = torch.zeros(())
    for k, name in enumerate(method.known):
        u = batch.x[name] / batch.x[name].norm(dim=1, keepdim=True) * 12**0.5
        expected = expected + torch.nn.functional.cross_entropy(method.heads[k](u), batch.label)
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("scale", "reached"), [(1.0, True), (0.0, False)])
def test_reconstruction_reaches_the_learner_as_its_key_says(scale: float, reached: bool) -> None:
    world = make_world()
    method = make(world, recon_grad_scale=scale)
    batch = step(method, world, "warmup")["labelled"]
    z = method.encode(batch.x["touch"])
    method.connect_terms(batch, z, (0, 0, 0))["recon"].backward()
    assert (method.projection.layers[0].weight.grad is not None) == reached
    assert method.connections[0].decoder[0].weight.grad is not None


def test_pairs_without_a_modality_do_not_count() -> None:
    world = make_world()
    method = make(world)
    world.absent["train"]["image"] = list(range(400))
    batches = step(method, world, "warmup")
    out = method(batches, "warmup", 3)
    expected = slow_recon(method, batches["labelled"], 3, ("text",))
    assert torch.allclose(out.logs["loss/recon"], expected, atol=1e-5)
    out.loss.backward()
    grads = [p.grad for p in (*method.connections[0].parameters(), *method.heads[0].parameters())]
    assert all(g is None or not g.any() for g in grads)


def test_missing_sets_give_zero_attached_terms() -> None:
    world = make_world()
    method = make(world)  # no refresh: no anchors, no disagreement
    batches = step(method, world, "explore")
    assert set(batches) == {"labelled", "known"}
    out = method(batches, "explore", 3)
    assert out.logs["loss/agree"] == out.logs["loss/explore"] == 0.0
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_anchors_are_taught_their_pseudo_label() -> None:
    world = make_world()
    method = with_sets(world)
    batches = step(method, world, "explore")
    batch = batches["anchor"]
    logits = method.classify(method.encode(batch.x["touch"]))
    expected = torch.nn.functional.cross_entropy(logits, method.roles[batch.index])
    assert torch.allclose(method(batches, "explore", 3).logs["loss/agree"], expected, atol=1e-5)


def test_noise_repeats_for_a_step_and_differs_between_calls_of_it() -> None:
    method = make(make_world())
    assert method.step_seeds(5) == (0, 5, 0)
    assert method.step_seeds(5) == (0, 5, 1)
    assert method.step_seeds(6) == (0, 6, 0)


# --- between epochs --------------------------------------------------------------------------


def test_refresh_forms_sets_of_unlabelled_samples() -> None:
    world = make_world()
    method = with_sets(world)
    labelled = torch.from_numpy(method.supervision.labelled)
    assert (method.roles[labelled] == NO_ROLE).all()
    assert int((method.roles >= 0).sum()) <= 40
    assert int((method.roles == DISAGREE).sum()) > 0
    assert int(method.roles.max()) < len(CLASSES)


def test_samples_without_the_unknown_modality_have_no_role() -> None:
    world = make_world()
    world.absent["train"]["touch"] = list(range(100))
    assert (with_sets(world).roles[:100] == NO_ROLE).all()


def test_refresh_repeats_itself() -> None:
    world = make_world()
    one, two = with_sets(world), with_sets(world)
    assert torch.equal(one.roles, two.roles)
    assert torch.equal(one.anchor_mean.mean, two.anchor_mean.mean)
    again = two.on_epoch_start(2, "explore", Passes(world, two))
    assert again == one.on_epoch_start(2, "explore", Passes(world, one))


def test_warm_up_logs_the_diagnostics_and_keeps_no_sets() -> None:
    world = make_world()
    method = make(world)
    logs = method.on_epoch_start(0, "warmup", Passes(world, method))
    wanted = {
        "agreement_rate", "agreement_purity", "anchor_purity", "accuracy_unlabelled",
        "accuracy_agreement", "accuracy_disagreement", "z_std", "anchor_largest_class_share",
        "judge_accuracy/image", "judge_accuracy/text", "mmd/image", "mmd/text", "anchor_class/a",
    }  # fmt: skip
    assert wanted <= set(logs)
    assert all(math.isfinite(v) for v in logs.values())
    assert (method.roles == NO_ROLE).all()
    assert method.before == {}


def test_refresh_does_not_touch_the_heads_in_training() -> None:
    world = make_world()
    method = make(world)
    held = [p.clone() for p in method.parameters()]
    method.on_epoch_start(2, "explore", Passes(world, method))
    assert all(torch.equal(a, b) for a, b in zip(held, method.parameters(), strict=True))
    assert not torch.equal(method.judges[0].weight, method.heads[0].weight)
    plain = make(world, head_refit_epochs=0)
    plain.on_epoch_start(2, "explore", Passes(world, plain))
    assert torch.equal(plain.judges[0].weight, plain.heads[0].weight)


def test_sampled_passes_do_not_depend_on_how_they_are_cut() -> None:
    world = make_world()
    method = make(world, vib_eval_mean=False)
    spec = method.streams("warmup")[1]
    whole = method.infer("mapped", world.batch(spec, np.arange(10)))["mapped:image"]
    part = method.infer("mapped:image", world.batch(spec, np.arange(5, 10)))["mapped:image"]
    assert torch.allclose(whole[5:], part, atol=1e-6)
    mean = make(world).infer("mapped", world.batch(spec, np.arange(10)))["mapped:image"]
    assert not torch.allclose(whole, mean)


def test_state_resumes_mid_epoch() -> None:
    world = make_world()
    one = with_sets(world)
    one(step(one, world, "explore", 0), "explore", 0)
    two = make(world)
    two.load_state_dict(one.state_dict())
    two.load_method_state({k: t.clone() for k, t in one.method_state().items()})
    for a, b in zip(one.streams("explore"), two.streams("explore"), strict=True):
        assert a == b
        assert (a.select is None and b.select is None) or np.array_equal(a.select, b.select)
    batches = step(one, world, "explore", 1)
    assert torch.equal(one(batches, "explore", 1).loss, two(batches, "explore", 1).loss)
    assert one.evaluate(Passes(world, one)) == two.evaluate(Passes(world, two))


def test_a_state_without_a_refresh_loads() -> None:
    world = make_world()
    one, two = make(world), make(world)
    two.load_method_state(one.method_state())
    assert two.judges == []
    ways = {f"touch_to_{m}/{n}" for m in ("image", "text") for n in INSTANCE}
    assert set(two.evaluate(Passes(world, two))) == {"top1", "top5", *ways}


def test_recall_of_the_own_sample_is_by_cosine_among_samples_that_have_both() -> None:
    world = make_world(train=100, test=60)
    world.absent["test"] = {"touch": [0, 1], "image": [1, 2, 3]}
    method = make(world)
    found = method.evaluate(Passes(world, method))
    world.absent["test"] = {}
    touch, image = world.x["test"]["touch"], world.x["test"]["image"]
    unit = 12**0.5 * image / image.norm(dim=1, keepdim=True)
    with torch.no_grad():
        z, v = method.encode(touch)[4:], method.connections[0](unit)[4:]
    cosine = torch.nn.functional.cosine_similarity(z[:, None], v[None], dim=2)
    place = (cosine > cosine.diagonal()[:, None]).sum(dim=1)
    for k in (1, 5):
        assert found[f"touch_to_image/r{k}_instance"] == pytest.approx(
            float((place < k).double().mean())
        )
    assert instance_recall(z, 3 * z)["r1_instance"] == 1.0
    assert instance_recall(z[:0], z[:0]) == {}


def test_a_dominant_anchor_class_raises_an_alarm(caplog: pytest.LogCaptureFixture) -> None:
    world = make_world()
    method = make(world, head_refit_epochs=0)
    with torch.no_grad():
        for head in method.heads:
            head.weight.zero_()
            head.bias.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
    logs = method.on_epoch_start(2, "explore", Passes(world, method))
    assert logs["anchor_largest_class_share"] == 1.0
    assert "anchor_class_quota" in caplog.text


def test_connections_close_the_gap_and_agreement_finds_what_is_certain() -> None:
    """Figures 5 and 6 (a) on Gaussian modalities: the mapping's discrepancy falls, the judges'
    accuracy rises, and disagreement is where the classifier errs."""
    world = make_world(noise=0.3, train=1000)
    method = make(world, epochs=9, warmup_epochs=8)
    history = run(method, world)
    assert history[-1]["mmd/image"] < 0.7 * history[0]["mmd/image"]
    assert history[-1]["judge_accuracy/image"] > history[0]["judge_accuracy/image"] + 0.1
    assert method.before["accuracy_agreement"] > method.before["accuracy_disagreement"]
    assert history[-1]["anchor_purity"] > history[-1]["accuracy_unlabelled"]
