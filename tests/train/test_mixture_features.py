"""Perceptors and selections over mixtures: each data set has its own cached features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from outmodal.data.manifest import Dataset
from outmodal.data.mixture import Mixture
from outmodal.errors import UserError
from outmodal.models.perceptors import ExportedPerceptor
from outmodal.models.perceptors.base import PerceptorBase
from outmodal.train.evaluation import evaluate_run
from outmodal.train.features import with_features
from outmodal.train.run import RunPlan, restore_method, train
from tests.data.mixed import open_mix
from tests.data.tiny import make_tiny
from tests.models.encoders import export
from tests.train.plans import COX, losses, tiny_plan


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Dataset]:
    """Two data sets with images, and one without."""
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    return [
        make_tiny(tmp_path / "one", 64, 4, ("pose", "image"), test=16),
        make_tiny(tmp_path / "two", 24, 1, ("pose", "image", "force"), test=6, seed=1),
        make_tiny(tmp_path / "three", 8, 1, ("pose",), test=0, seed=2),
    ]


@pytest.fixture
def encoder(sources: list[Dataset], tmp_path: Path) -> str:
    return str(export("vit", sources[0], tmp_path / "encoder"))


def mix(sources: list[Dataset]) -> list[dict[str, str]]:
    return [{"path": str(d.root), "classes": "same"} for d in sources]


def plan(sources: list[Dataset], out: Path, perceptor: PerceptorBase) -> RunPlan:
    base = tiny_plan(out, "", {"epochs": 3}, stream={"mix": mix(sources)})
    return replace(base, perceptors=(perceptor,), method=COX)  # type: ignore[arg-type]


def test_every_data_set_is_embedded_by_itself(
    sources: list[Dataset], encoder: str, tmp_path: Path
) -> None:
    mixture = open_mix(*mix(sources))
    made = with_features(mixture, [ExportedPerceptor(path=encoder)], {"pose"})
    assert isinstance(made, Mixture)
    assert made.modality("image").kind == "vector"
    assert list(made.manifest.modalities) == ["pose", "image"]
    assert made.split("train").samples == 96
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2
    assert made.sources[2].dataset.fingerprint() == sources[2].fingerprint()
    assert made.fingerprint() != mixture.fingerprint()
    alone = with_features(sources[0], [ExportedPerceptor(path=encoder)], {"pose"})
    assert alone.where == made.sources[0].dataset.where  # found again, by whoever needs it


def test_a_perceptor_of_what_no_data_set_has(sources: list[Dataset], encoder: str) -> None:
    mixture = open_mix(*mix(sources[2:]))
    with pytest.raises(UserError, match="no modality 'image'"):
        with_features(mixture, [ExportedPerceptor(path=encoder)], {"pose"})


def test_sets_form_and_live_perceptors_give_the_losses_of_cached_features(
    sources: list[Dataset], encoder: str, tmp_path: Path
) -> None:
    cached = plan(sources, tmp_path / "cached", ExportedPerceptor(path=encoder))
    live = plan(sources, tmp_path / "live", ExportedPerceptor(path=encoder, live=True))
    measured = train(live).metrics
    assert train(cached).metrics == pytest.approx(measured, abs=1e-5)
    assert len(losses(tmp_path / "live")) == 18
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "cached"), abs=1e-5)
    _, _, seen = restore_method(live)
    assert isinstance(seen, Mixture)
    assert evaluate_run(live).metrics["top1"] >= 0
    alone = evaluate_run(live, data=str(sources[0].root))
    assert alone.samples == 16
