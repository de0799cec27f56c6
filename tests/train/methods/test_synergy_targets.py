"""What a helper says about each row: numbers by counting, noise by its length, sentences by a live
encoder, other samples' features by their indices, and the targets of an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from outmodal.data.manifest import Dataset, Manifest, Modality
from outmodal.models import guide
from outmodal.models.guide import encode_guide, number_sentences, unrelated_sentences
from outmodal.models.perceptors import HubPerceptor, load_perceptor
from outmodal.train.methods import Synergy, SynergyConfig
from outmodal.train.methods.synergy_report import latents_of
from tests.train.methods.fakes import CLASSES, Passes, World, make_world
from tests.train.methods.synergies import TABLE, hub_bert, made, tabled


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubPerceptor:
    return hub_bert(tmp_path, monkeypatch)


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
