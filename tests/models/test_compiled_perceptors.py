"""Compiled perceptors, and sizes that are known without a forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from outmodal.data.decode import decode
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.shards import read_shard
from outmodal.errors import UserError
from outmodal.models.perceptors import (
    ExportedPerceptor,
    FrozenPerceptor,
    HubPerceptor,
    ImageBindPerceptor,
    LanguageBindPerceptor,
    Perceptor,
    PerceptorBase,
    load_perceptor,
)
from outmodal.models.perceptors import compiler as compiler_module
from outmodal.models.perceptors.imagebind_towers import ImageBindTower
from outmodal.models.perceptors.languagebind_towers import LanguageBindTower
from tests.data.tiny import make_tiny
from tests.models import hub_models
from tests.models.encoders import export
from tests.models.golden_towers import LANGUAGEBIND, readable_imagebind


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Compiled modules, in order; they are traced as ever but need no C++ compiler."""
    seen: list[nn.Module] = []
    original = nn.Module.compile

    def compile_(self: nn.Module, **options: Any) -> None:
        seen.append(self)
        original(self, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    return seen


def samples(dataset: Dataset, perceptor: Perceptor, count: int = 3) -> Tensor:
    spec = dataset.modality(perceptor.modality)
    shard = dataset.shard_path(dataset.split("train").shards[0])
    rows = [
        perceptor.transform(decode(spec, members[f"{perceptor.modality}.{spec.ext}"]), key)
        for _, key, members in read_shard(shard, stop=count)
    ]
    return torch.stack(rows)


def config_of(family: str, dataset: Dataset, folder: Path) -> PerceptorBase:
    """A configuration of each family over tiny weights."""
    if family == "exported":
        return ExportedPerceptor(path=str(export("vit", dataset, folder)))
    if family == "imagebind":
        return ImageBindPerceptor(modality="image", path=str(readable_imagebind(folder)))
    if family == "languagebind":
        return LanguageBindPerceptor(modality="image", path=str(LANGUAGEBIND / "image"))
    return HubPerceptor(modality="image", path=str(hub_models.clip(folder)))


@pytest.mark.parametrize("family", ["exported", "imagebind", "languagebind", "hub"])
def test_every_family_compiles_and_computes_in_bf16(
    family: str, dataset: Dataset, tmp_path: Path, traced: list[nn.Module]
) -> None:
    config = config_of(family, dataset, tmp_path / "weights")
    plain = load_perceptor(config, dataset)
    x = samples(dataset, plain)
    assert traced == []
    compiled = load_perceptor(config.model_copy(update={"compile": True}), dataset)
    torch.testing.assert_close(compiled.encode(x), plain.encode(x), atol=1e-5, rtol=0)
    assert len(traced) == 1
    compiled.encode(x[:2])
    assert len(traced) == 1
    assert compiled.identity == plain.identity
    half = load_perceptor(config.model_copy(update={"precision": "bf16"}), dataset).encode(x)
    assert half.dtype == torch.float32
    assert float((half * plain.encode(x)).sum(1).min()) > 0.99


def test_texts_of_any_length_share_one_compiled_model(
    dataset: Dataset, tmp_path: Path, traced: list[nn.Module]
) -> None:
    config = HubPerceptor(modality="text", path=str(hub_models.bert(tmp_path)))
    plain = load_perceptor(config, dataset)
    compiled = load_perceptor(config.model_copy(update={"compile": True}), dataset)
    rows = [plain.transform(text, "") for text in ("red", "a red thing", "a thing number 1 2 3 4")]
    x = torch.stack(rows)
    torch.testing.assert_close(compiled.encode(x), plain.encode(x), atol=1e-5, rtol=0)
    assert len(traced) == 1


def test_without_a_compiler_the_message_says_what_to_install(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiler_module.shutil, "which", lambda name: None)
    config = HubPerceptor(modality="image", path=str(hub_models.vit(tmp_path)), compile=True)
    perceptor = load_perceptor(config, dataset)
    with pytest.raises(UserError, match=r"'image'.*no C\+\+ compiler \(g\+\+.*leave compile off"):
        perceptor.encode(samples(dataset, perceptor))
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(UserError, match=r"/nowhere/c\+\+ of \$CXX"):
        perceptor.encode(samples(dataset, perceptor))


def test_gpus_need_triton_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_module.shutil, "which", lambda name: name)
    monkeypatch.setattr(compiler_module.importlib.util, "find_spec", lambda name: None)
    assert compiler_module.lacks_compiler(torch.device("cpu")) == ""
    assert "pip install triton" in compiler_module.lacks_compiler(torch.device("cuda"))


def refuse(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("a forward pass")


def test_loading_a_released_perceptor_runs_no_forward_pass(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageBindTower, "forward", refuse)
    monkeypatch.setattr(LanguageBindTower, "forward", refuse)
    film = dataset.manifest.model_copy(
        update={"modalities": {"image": Modality(kind="video", ext="mp4")}}
    )
    films = Dataset(dataset.root, film)
    assert load_perceptor(config_of("imagebind", films, tmp_path), films).dim == 32
    assert load_perceptor(config_of("languagebind", dataset, tmp_path), dataset).dim > 0


def test_a_perceptor_of_unknown_size_is_measured_once(dataset: Dataset, tmp_path: Path) -> None:
    transform = load_perceptor(config_of("hub", dataset, tmp_path), dataset).transform
    calls: list[int] = []

    class Tower(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)[:, :5]

    assert FrozenPerceptor("image", "tiny:1", transform, Tower()).dim == 5
    assert calls == [1]
    assert FrozenPerceptor("image", "tiny:1", transform, Tower(), dim=5).dim == 5
    assert calls == [1]
