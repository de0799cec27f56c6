"""Perceptors of a run: live or computed before, the same training; and never those of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outmodal.data.manifest import Dataset, open_dataset
from outmodal.errors import UserError
from outmodal.models.embed import embed_dataset
from outmodal.models.perceptors import ExportedPerceptor, HubPerceptor, load_perceptor
from outmodal.models.perceptors.base import PerceptorBase
from outmodal.train.run import RunPlan, restore_method, train
from tests.data.tiny import make_tiny
from tests.models.encoders import export
from tests.models.hub_models import clip
from tests.train.plans import COX, losses, tiny_plan


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    names = ("pose", "image", "force")
    return make_tiny(tmp_path / "data", 96, 4, names, test=16, missing={"image": (1, 9, 30)})


@pytest.fixture
def encoder(dataset: Dataset, tmp_path: Path) -> str:
    return str(export("vit", dataset, tmp_path / "encoder"))


def plan(data: Path, out: Path, *perceptors: PerceptorBase) -> RunPlan:
    """COX of `pose` with the perceived `image`."""
    base = tiny_plan(out, str(data), {"epochs": 3})
    text = f"{base.config_text}\nperceptors: {[p.model_dump_json() for p in perceptors]}\n"
    return replace(base, perceptors=perceptors, method=COX, config_text=text)  # type: ignore[arg-type]


def test_live_perceptors_give_the_losses_of_cached_features(
    dataset: Dataset, encoder: str, tmp_path: Path
) -> None:
    cached = plan(dataset.root, tmp_path / "cached", ExportedPerceptor(path=encoder))
    live = plan(dataset.root, tmp_path / "live", ExportedPerceptor(path=encoder, live=True))
    features = tmp_path / "cache" / "features"
    measured = train(live).metrics
    assert not features.exists()
    assert train(cached).metrics == pytest.approx(measured, abs=1e-5)
    assert len(list(features.iterdir())) == 1
    assert len(losses(tmp_path / "live")) == 18
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "cached"), abs=1e-5)
    method, _, seen = restore_method(live)
    assert seen.modality("image").kind == "vector"
    assert method.context.dims["image"] == 6


def test_a_live_perceptor_and_a_learner_of_one_modality_are_refused(
    dataset: Dataset, encoder: str, tmp_path: Path
) -> None:
    cfg = ExportedPerceptor(path=encoder, modality="image", live=True)
    with pytest.raises(UserError, match="shares its modality with another perceptor"):
        train(plan(dataset.root, tmp_path / "run", cfg, cfg))


def embedded(dataset: Dataset, cfg: PerceptorBase, out: Path) -> Dataset:
    return embed_dataset(dataset, [load_perceptor(cfg, dataset)], ["pose"], out)


def test_stored_features_of_the_runs_own_perceptor_are_used(
    dataset: Dataset, encoder: str, tmp_path: Path
) -> None:
    cfg = ExportedPerceptor(path=encoder)
    features = embedded(dataset, cfg, tmp_path / "features")
    train(plan(features.root, tmp_path / "named", cfg))
    train(plan(features.root, tmp_path / "unnamed"))
    assert losses(tmp_path / "named") == losses(tmp_path / "unnamed")
    assert not (tmp_path / "cache" / "features").exists()


@pytest.mark.parametrize("live", [False, True])
def test_stored_features_of_another_perceptor_are_refused_with_both_names(
    dataset: Dataset, encoder: str, tmp_path: Path, live: bool
) -> None:
    features = embedded(dataset, ExportedPerceptor(path=encoder), tmp_path / "features")
    made_by = features.modality("image").perceptor
    other = export("vit", dataset, tmp_path / "other", seed=1)
    cfg = ExportedPerceptor(path=str(other), live=live)
    with pytest.raises(UserError, match="features of two perceptors do not mix") as caught:
        train(plan(features.root, tmp_path / "run", cfg))
    assert f"holds vectors by {made_by}" in str(caught.value)
    assert cfg.identities()[0] in str(caught.value)


@pytest.mark.parametrize("pool", ["auto", "projection"])
def test_hub_perceptors_know_their_features_again(
    dataset: Dataset, tmp_path: Path, pool: Any
) -> None:
    cfg = HubPerceptor(modality="image", path=str(clip(tmp_path / "clip")), pool=pool)
    made = embedded(dataset, cfg, tmp_path / "features").modality("image").perceptor
    assert made in cfg.identities()
    assert len(cfg.identities()) == (4 if pool == "auto" else 1)
    assert open_dataset(tmp_path / "features").modality("image").perceptor == made
