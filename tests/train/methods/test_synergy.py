"""Synergy: its losses by formulas, its targets by counting, its controls, its bad input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from outmodal.data.manifest import Dataset, Manifest, Modality
from outmodal.errors import UserError
from outmodal.models import guide
from outmodal.models.guide import encode_guide, number_sentences, unrelated_sentences
from outmodal.models.perceptors import HubPerceptor, load_perceptor
from outmodal.train.methods import Synergy, SynergyConfig, build_method
from outmodal.train.methods.synergy import latent_rows
from outmodal.train.methods.synergy_report import guide_share, latents_of
from tests.models.hub_models import bert, vit
from tests.train.methods.fakes import CLASSES, Passes, World, make_context, make_world, run

TABLE = torch.randn(7, 9, generator=torch.Generator().manual_seed(1))


def tabled(table: Tensor = TABLE, **keys: Any) -> SynergyConfig:
    """A configuration with a table that no encoder made."""
    config = SynergyConfig.model_validate({"unknown": "touch", "targets": "gaussian", **keys})
    return config.restored({"targets.table": table})


def made(config: SynergyConfig, world: World | None = None, **keys: Any) -> Synergy:
    method = build_method(config, make_context(world or make_world(), **keys))
    assert isinstance(method, Synergy)
    return method


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubPerceptor:
    """A small BERT in a folder, as a hub would have it."""
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    return HubPerceptor(modality="text", path=str(bert(tmp_path / "bert")))


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
    assert float(out.logs["loss/supervised"]) == pytest.approx(float(expected), rel=1e-5)


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


# --- targets ---------------------------------------------------------------------------------


def numbers(method: Synergy, world: World, steps: int) -> list[tuple[int, int, int]]:
    """(sample, class, row of the table) of every row of some steps."""
    found = []
    for step in range(steps):
        batches = world.step(list(method.streams("train")), step)
        target, there = method.targets.rows(batches, step)
        assert bool(there.all())
        rows = torch.cdist(target, TABLE).argmin(dim=1)
        batch = batches["train"]
        found += list(zip(batch.index.tolist(), batch.label.tolist(), rows.tolist(), strict=True))
    return found


def test_a_number_is_drawn_in_every_step_each_equally_often() -> None:
    world = make_world()
    method = made(tabled(target_assign="per_step"), world)
    found = numbers(method, world, 70)
    counts = Counter(row for _, _, row in found)
    assert max(counts.values()) - min(counts.values()) < 0.2 * 70 * 32 / 7
    first = [row for _, _, row in found[:28]]
    assert all(sorted(first[i : i + 7]) == list(range(7)) for i in range(0, 28, 7))
    by_class = Counter((label, row) for _, label, row in found)
    assert min(by_class.values()) > 40, "classes and numbers have nothing to do with each other"
    assert found[:32] != found[32:64]


def test_a_number_is_kept_by_sample_by_class_or_by_all() -> None:
    world = make_world()
    kept = numbers(made(tabled(target_assign="per_sample"), world), world, 40)
    assert len({(sample, row) for sample, _, row in kept}) == len({s for s, _, _ in kept})
    assert len({row for _, _, row in kept}) == 7
    classes = numbers(made(tabled(target_assign="per_class"), world), world, 3)
    assert all(label == row for _, label, row in classes)
    assert {row for *_, row in numbers(made(tabled(target_assign="constant")), world, 3)} == {0}


def test_gaussian_targets_are_noise_of_the_helpers_length(helper: HubPerceptor) -> None:
    world = make_world()
    method = made(SynergyConfig(unknown="touch", targets="gaussian", helper=helper), world)
    table = encode_guide(helper, number_sentences("This is about class {}.", 4))
    batches = world.step(list(method.streams("train")), 0)
    drawn = torch.cat([method.targets.rows(batches, step)[0] for step in range(40)])
    assert drawn.shape[1] == table.shape[1]
    wanted = float(table.square().mean().sqrt())
    assert float(drawn.square().mean().sqrt()) == pytest.approx(wanted, rel=0.03)
    assert abs(float(drawn.mean())) < 0.05 * wanted
    assert len(drawn.unique(dim=0)) == len(drawn)
    fixed = SynergyConfig(unknown="touch", targets="gaussian", target_assign="constant", dim=5)
    constant = made(fixed, world).targets.rows(batches, 0)[0]
    assert len(constant.unique(dim=0)) == 1
    of_guide = SynergyConfig(unknown="touch", targets="gaussian", guide="image")
    noise = made(of_guide, world).targets.rows(batches, 0)[0]
    assert noise.shape == (32, 12)
    assert float(noise.square().mean()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("level", [1, 2])
def test_the_table_is_what_the_live_encoder_says(helper: HubPerceptor, level: Any) -> None:
    world = make_world()
    config = SynergyConfig(unknown="touch", helper=helper, level=level)
    method = made(config, world)
    sentences = unrelated_sentences()
    if level == 2:
        sentences = [f"This is about class {n}." for n in range(len(CLASSES))]
    manifest = Manifest(
        name="x", classes=(), modalities={"text": Modality(kind="text", ext="txt")}, splits={}
    )
    live = load_perceptor(helper, Dataset(Path(), manifest))
    expected = torch.cat([live.raw(live.transform(s, "")[None]) for s in sentences[:50]])
    table = method.targets.state()["targets.table"]
    assert len(table) == len(set(sentences)) == (1000 if level == 1 else 4)
    torch.testing.assert_close(table[:50], expected, rtol=1e-4, atol=1e-5)
    batches = world.step(list(method.streams("train")), 0)
    target, _ = method.targets.rows(batches, 0)
    assert all(bool((table == row).all(dim=1).any()) for row in target)
    assigned = "per_sample" if level == 1 else "per_step"
    assert method.settings.target_assign == assigned


def test_the_helper_runs_once(helper: HubPerceptor, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SynergyConfig(unknown="touch", helper=helper)
    first = made(config)
    state = torch.get_rng_state()

    def never(*_: Any) -> None:
        raise AssertionError("the encoder was loaded again")

    monkeypatch.setattr(guide, "load_perceptor", never)
    again = made(config)
    assert torch.equal(state, torch.get_rng_state()), "the cache decides no weight"
    for (name, mine), (_, other) in zip(
        first.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(mine, other), name
    for broken in (Path(guide.cache_dir()) / "guides").glob("*"):
        broken.write_bytes(b"no table")
    with pytest.raises(AssertionError, match="loaded again"):
        made(config)


def test_other_samples_never_give_a_sample_its_own_features() -> None:
    world = make_world(train=40)
    method = made(SynergyConfig(unknown="touch", targets="samples", guide="image"), world)
    assert [s.name for s in method.streams("train")] == ["train", "guide"]
    own = 0
    for step in range(50):
        batches = world.step(list(method.streams("train")), step)
        target, there = method.targets.rows(batches, step)
        mine, other = batches["train"].index, batches["guide"].index
        assert torch.equal(there, mine != other)
        own += int((~there).sum())
        unit = F.normalize(world.x["train"]["image"][other], dim=1) * 12**0.5
        torch.testing.assert_close(target, unit)
        logs = method(batches, "train", step).logs
        assert float(logs["targets/missing"]) == pytest.approx(float((~there).float().mean()))
    assert 10 < own < 90  # 1,600 draws of 40 samples


def test_level_3_reads_the_samples_own_description_and_leaves_out_those_without() -> None:
    world = make_world()
    world.absent["train"]["text"] = list(range(0, 400, 4))
    method = made(SynergyConfig(unknown="touch", level=3, guide="text"), world)
    assert method.on_epoch_start(0, "train", Passes(world, method)) == {"targets/share": 0.75}
    batches = world.step(list(method.streams("train")), 0)
    batch = batches["train"]
    out = method(batches, "train", 0)
    z, _ = method.latents(batch.x["touch"])
    target = F.normalize(world.x["train"]["text"][batch.index], dim=1) * 12**0.5
    there = batch.index % 4 != 0
    expected = (z - target)[there].square().mean()
    assert float(out.logs["loss/latent"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    missing = float((~there).float().mean())
    assert 0 < missing < 1
    assert float(out.logs["targets/missing"]) == pytest.approx(missing)
    assert method.on_epoch_start(1, "train", Passes(world, method)) == {}


def test_evaluation_latents_have_targets_of_the_same_kind() -> None:
    world = make_world(test=60)
    kinds: Mapping[str, SynergyConfig] = {
        "per_step": tabled(target_assign="per_step"),
        "per_class": tabled(target_assign="per_class"),
        "constant": tabled(target_assign="constant"),
        "noise": SynergyConfig(unknown="touch", targets="gaussian", dim=9),
        "samples": SynergyConfig(unknown="touch", targets="samples", guide="image"),
        "paired": SynergyConfig(unknown="touch", level=3, guide="image"),
    }
    for name, config in kinds.items():
        method = made(config, world)
        found = latents_of(method, Passes(world, method), "test", None)
        assert found.target.shape == found.z.shape == (60, method.targets.dim), name
        again = latents_of(method, Passes(world, method), "test", None)
        assert torch.equal(found.target, again.target)
        if name == "per_step":
            counts = Counter(torch.cdist(found.target, TABLE).argmin(dim=1).tolist())
            assert max(counts.values()) - min(counts.values()) <= 1
        if name == "per_class":
            assert torch.equal(found.target, TABLE[found.label])
        if name in ("samples", "paired"):
            units = F.normalize(world.x["test"]["image"], dim=1) * 12**0.5
            near = torch.cdist(found.target, units).argmin(dim=1)
            own = near == torch.arange(60)
            assert bool(own.all()) if name == "paired" else not bool(own.any())
            assert len(near.unique()) == 60


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
