"""Synergy: its losses by formulas, what is left of a run, its bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.models.perceptors import HubPerceptor
from outmodal.train.methods import SynergyConfig
from outmodal.train.methods.synergy import latent_rows
from outmodal.train.methods.synergy_report import guide_share
from tests.models.hub_models import vit
from tests.train.methods.fakes import Passes, make_world, run
from tests.train.methods.synergies import TABLE, hub_bert, made, tabled


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubPerceptor:
    return hub_bert(tmp_path, monkeypatch)


# --- losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "sum_half"])
def test_latent_losses_are_their_formulas(loss: Any, reduction: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 8, generator=generator, requires_grad=True)
    target = torch.randn(5, 8, generator=generator, requires_grad=True)
    rows = latent_rows(z, target, loss, reduction)
    wide, other = z.detach().double(), target.detach().double()
    if loss == "cosine":
        expected = 1 - F.cosine_similarity(wide, other)
    else:
        expected = (wide - other).pow(2).sum(1) * (0.5 if reduction == "sum_half" else 1 / 8)
    torch.testing.assert_close(rows.detach().double(), expected, rtol=1e-5, atol=1e-6)
    rows.sum().backward()
    assert z.grad is not None
    assert target.grad is None, "the target is frozen"


@pytest.mark.parametrize("latent_map", ["linear_ln", "linear", "side"])
@pytest.mark.parametrize("fidelity", ["rec", "paper", "code"])
def test_the_objective_is_the_formula(latent_map: str, fidelity: str) -> None:
    world = make_world()
    config = tabled(latent_map=latent_map, fidelity=fidelity, alpha=0.3, smoothing=0.1)
    method = made(config, world)
    batches = world.step(list(method.streams("train")), 3)
    out = method(batches, "train", 3)
    batch = batches["train"]
    wide = method.double()
    r = wide.learner(batch.x["touch"].double())
    z = F.linear(r, wide.projection.layers[0].weight, wide.projection.layers[0].bias)
    if latent_map == "linear_ln":
        norm = wide.projection.layers[1]
        z = F.layer_norm(z, (9,), norm.weight, norm.bias)
    read = r if latent_map == "side" else z
    logits = F.linear(read, wide.classifier.weight, wide.classifier.bias)
    target = method.targets.rows(batches, 3)[0].double()
    square = (z - target).pow(2)
    latent = 0.5 * square.sum(1).mean() if fidelity == "paper" else square.mean()
    expected = 0.7 * F.cross_entropy(logits, batch.label, label_smoothing=0.1) + 0.3 * latent
    assert float(out.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    latent = latent.detach()
    assert float(out.logs["loss/latent"]) == pytest.approx(float(latent), rel=1e-5)


@pytest.mark.parametrize("mixing", [None, {"mixup": 0.8, "p": 0.9}], ids=["plain", "mixed"])
def test_alpha_0_is_a_hand_written_loop_of_cross_entropy_bit_for_bit(mixing: Any) -> None:
    world = make_world()
    keys = {"alpha": 0.0, "mixing": mixing, "smoothing": 0.1 if mixing else 0.0}
    ours, theirs = made(tabled(**keys), world), made(tabled(**keys), world)
    run(ours, world)
    model = torch.nn.Sequential(
        theirs.learner.backbone, *theirs.projection.layers, theirs.classifier
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def rows(logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label, reduction="none", label_smoothing=keys["smoothing"])

    for step in range(8 * (400 // 32)):
        batch = world.step(list(theirs.streams("train")), step)["train"]
        optimizer.zero_grad()
        logits = model(batch.x["touch"])
        loss = rows(logits, batch.label)
        if batch.mixed is not None:
            share, other = batch.mixed.share, rows(logits, batch.mixed.label)
            loss = share * loss + (1 - share) * other
        loss.mean().backward()
        optimizer.step()
    assert (batch.mixed is not None) == (mixing is not None)
    assert [s.name for s in ours.streams("train")] == ["train"]
    for (name, mine), (_, other) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert torch.equal(mine, other), name


def test_mixed_rows_have_soft_labels_and_keep_their_own_targets() -> None:
    world = make_world()
    mixed = made(tabled(alpha=0.3, mixing={"mixup": 0.8}, smoothing=0.1), world)
    plain = made(tabled(alpha=0.3, smoothing=0.1), world)
    batches = world.step(list(mixed.streams("train")), 5)
    batch, unmixed = batches["train"], world.step(list(plain.streams("train")), 5)["train"]
    assert torch.equal(batch.index, unmixed.index)
    assert batch.mixed is not None
    share = batch.mixed.share[:, None]
    swapped = unmixed.x["touch"].view(-1, 2, 8).flip(1).view(-1, 8)
    torch.testing.assert_close(batch.x["touch"], share * unmixed.x["touch"] + (1 - share) * swapped)
    assert torch.equal(
        mixed.targets.rows(batches, 5)[0], plain.targets.rows({"train": unmixed}, 5)[0]
    )
    out, (_, logits) = mixed(batches, "train", 5), mixed.latents(batch.x["touch"])
    one_hot, other = (F.one_hot(t, 4).float() for t in (batch.label, batch.mixed.label))
    soft = share * one_hot + (1 - share) * other
    expected = F.cross_entropy(logits, 0.9 * soft + 0.1 / 4)
    assert float(out.logs["loss/supervised"]) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_it_learns_and_its_latents_come_near() -> None:
    world = make_world(noise=0.2)
    method = made(tabled(target_assign="per_class", alpha=0.3), world)
    before = method.diagnose(Passes(world, method))
    run(method, world)
    after = method.diagnose(Passes(world, method))
    assert method.evaluate(Passes(world, method))["top1"] > 0.6
    assert set(after) == {"latent/loss", "latent/w2", "latent/sliced_w2"}
    for name, value in after.items():
        assert 0 <= value < before[name]


# --- what is left of it ----------------------------------------------------------------------


def test_a_run_is_built_again_without_its_helper(helper: HubPerceptor) -> None:
    world = make_world()
    config = SynergyConfig(unknown="touch", helper=helper)
    method = made(config, world)
    state = method.method_state()
    gone = config.model_copy(update={"helper": helper.model_copy(update={"path": "/gone"})})
    with pytest.raises(UserError, match="/gone does not exist"):
        made(gone, world)
    again = made(gone.restored(state), world)
    assert again.dim == method.dim
    again.load_method_state(state)
    batches = world.step(list(method.streams("train")), 0)
    assert torch.equal(method(batches, "train", 0).loss, again(batches, "train", 0).loss)
    noise = made(SynergyConfig(unknown="touch", targets="gaussian", dim=5), world)
    kept = noise.settings.restored(noise.method_state())
    assert made(kept, world).dim == 5


def test_side_exports_the_representation_and_its_classifier() -> None:
    world = make_world()
    method = made(tabled(latent_map="side"), world)
    parts = method.export_parts(None)
    assert parts.head is None
    assert parts.feature_norm == "none"
    batch = world.step(list(method.streams("train")), 0)["train"]
    found = method.infer("embedding:touch", batch)
    assert torch.equal(found["embedding"], found["representation"])
    logits = method.infer("logits:touch", batch)["logits"]
    assert parts.classifier is not None
    torch.testing.assert_close(parts.classifier(found["embedding"]), logits)
    z = method.infer("z", batch)["z"]
    assert z.shape == (32, 9)
    whole = made(tabled(), world)
    head = whole.export_parts("touch").head
    assert head is not None
    assert head.kind == "linear_ln"
    assert torch.equal(head(found["representation"]), whole.projection(found["representation"]))


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "need `helper`"),
        ({"level": 3}, "need `guide`"),
        ({"targets": "samples"}, "need `guide`"),
        ({"targets": "samples", "guide": "touch"}, "the same modality"),
        ({"level": 3, "guide": "text", "target_assign": "constant"}, "picks from a table"),
    ],
)
def test_configurations_that_name_no_targets_are_refused(keys: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SynergyConfig.model_validate({"unknown": "touch", **keys})


def test_what_does_not_fit_is_explained(helper: HubPerceptor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no vector modality .* did you mean 'image'"):
        made(SynergyConfig(unknown="touch", targets="samples", guide="imag"))
    with pytest.raises(UserError, match="table of targets has 3 rows and the data set 4 classes"):
        made(tabled(TABLE[:3], target_assign="per_class"))
    with pytest.raises(UserError, match="table of targets has 3 rows, and the data set asks for 7"):
        made(tabled()).load_method_state({"targets.table": TABLE[:3]})
    of_others = SynergyConfig(unknown="touch", helper=helper).restored({"targets.table": TABLE})
    with pytest.raises(UserError, match="has 7 rows, and the data set asks for 4"):
        made(of_others)
    with pytest.raises(UserError, match=r"method.dim is 10, but the targets have 9"):
        made(tabled(dim=10))
    wrong = SynergyConfig(unknown="touch", helper=helper, sentence="nothing to fill")
    with pytest.raises(UserError, match=r"needs \{\} once"):
        made(wrong)
    pictures = HubPerceptor(modality="text", path=str(vit(tmp_path / "vit")))
    with pytest.raises(UserError, match=r"helper must be an encoder of text: .*vit: transformers"):
        made(SynergyConfig(unknown="touch", helper=pictures))


def test_a_split_without_any_description_is_refused_before_training() -> None:
    world = make_world()
    world.absent["train"]["text"] = list(range(400))
    method = made(SynergyConfig(unknown="touch", level=3, guide="text"), world)
    with pytest.raises(UserError, match="none of 400 samples of split 'train' has 'text'"):
        method.on_epoch_start(0, "train", Passes(world, method))
    with pytest.raises(UserError, match="build the data set with it"):
        guide_share(method.context, "text", Passes(world, method))
    world.absent["train"] = {"text": list(range(200)), "touch": list(range(200, 400))}
    with pytest.raises(UserError, match=r"none of 400 samples .* pairs 'touch' with 'text'"):
        method.on_epoch_start(0, "train", Passes(world, method))
