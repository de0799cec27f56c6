"""Perceptors: unit features of exports and of transformers folders, and clear refusals."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from outmodal.data.decode import DecodeError, decode
from outmodal.data.manifest import Dataset
from outmodal.data.shards import read_shard
from outmodal.errors import UserError
from outmodal.models.perceptors import ExportedPerceptor, HubPerceptor, Perceptor, load_perceptor
from outmodal.models.perceptors import hub as hub_module
from tests.data.tiny import RATE, make_tiny
from tests.models import hub_models
from tests.models.encoders import export, make

logging.set_verbosity_error()
logging.disable_progress_bar()

Make = Callable[[Path], Path]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def hub(dataset: Dataset, modality: str, folder: Path, **options: Any) -> Perceptor:
    return load_perceptor(HubPerceptor(modality=modality, path=str(folder), **options), dataset)


def exported(dataset: Dataset, folder: Path, **options: Any) -> Perceptor:
    return load_perceptor(ExportedPerceptor(path=str(folder), **options), dataset)


def samples(dataset: Dataset, perceptor: Perceptor, count: int = 6) -> Tensor:
    """Transformed inputs of the first training samples."""
    spec = dataset.modality(perceptor.modality)
    shard = dataset.shard_path(dataset.split("train").shards[0])
    rows = [
        perceptor.transform(decode(spec, members[f"{perceptor.modality}.{spec.ext}"]), key)
        for _, key, members in read_shard(shard, stop=count)
    ]
    return torch.stack(rows)


def assert_unit(e: Tensor, rows: int, dim: int) -> None:
    assert e.shape == (rows, dim)
    assert e.dtype == torch.float32
    assert not e.requires_grad
    torch.testing.assert_close(e.norm(dim=1), torch.ones(rows))


# exported


@pytest.mark.parametrize(("name", "head"), [("vit", "mlp"), ("mlp", "none"), ("bert", "linear")])
def test_exported_features_are_the_trained_embedding_at_unit_length(
    name: str, head: str, dataset: Dataset, tmp_path: Path
) -> None:
    folder = export(name, dataset, tmp_path / "out", head)
    perceptor = exported(dataset, folder)
    learner, transform, _ = make(name, dataset)
    check = load_file(folder / "check.safetensors")
    e = perceptor.encode(check["inputs"])
    assert_unit(e, 5, perceptor.dim)
    torch.testing.assert_close(e, check["embedding_unit"], atol=1e-5, rtol=0)
    assert perceptor.modality == learner.modality
    assert perceptor.transform.config == transform.config


def test_exported_perceptors_read_a_modality_by_another_name(
    dataset: Dataset, tmp_path: Path
) -> None:
    other = make_tiny(tmp_path / "other", modalities=["force"])
    renamed = Dataset(
        other.root,
        other.manifest.model_copy(update={"modalities": {"touch": other.modality("force")}}),
    )
    folder = export("mlp", dataset, tmp_path / "out")
    assert exported(renamed, folder, modality="touch").modality == "touch"
    with pytest.raises(UserError, match="no modality 'force'"):
        exported(renamed, folder)
    with pytest.raises(UserError, match=r"reads series.*'image'.*is image"):
        exported(dataset, folder, modality="image")


def test_identity_follows_the_weights_not_the_place(dataset: Dataset, tmp_path: Path) -> None:
    first = exported(dataset, export("mlp", dataset, tmp_path / "first")).identity
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "first", moved)
    assert exported(dataset, moved).identity == first
    assert first.startswith("exported:tiny-encoder@")
    assert len(first.partition("@")[2]) == 16
    other = exported(dataset, export("mlp", dataset, tmp_path / "other", seed=1)).identity
    without_head = exported(dataset, export("mlp", dataset, tmp_path / "bare", "none")).identity
    assert len({first, other, without_head}) == 3


def test_a_perceptor_is_frozen_and_leaves_the_generator_alone(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = export("resnet", dataset, tmp_path / "out")
    model = hub_models.vit(tmp_path / "model", pooler=False)
    state = torch.random.get_rng_state()
    perceptor = exported(dataset, folder)
    hub(dataset, "image", model)
    assert torch.equal(torch.random.get_rng_state(), state)
    x = samples(dataset, perceptor).requires_grad_()
    together = perceptor.encode(x)
    alone = torch.cat([perceptor.encode(row[None]) for row in x])
    torch.testing.assert_close(together, alone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(perceptor.encode(x), together)


def test_bf16_is_close_and_still_returns_fp32_unit_vectors(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = export("vit", dataset, tmp_path / "out")
    exact, half = exported(dataset, folder), exported(dataset, folder, precision="bf16")
    x = samples(dataset, exact)
    assert_unit(half.encode(x), 6, 6)
    assert float((half.encode(x) * exact.encode(x)).sum(1).min()) > 0.99
    assert half.identity == exact.identity


def test_moving_a_perceptor_returns_it(dataset: Dataset, tmp_path: Path) -> None:
    perceptor = exported(dataset, export("mlp", dataset, tmp_path / "out"))
    assert perceptor.to(torch.device("cpu")) is perceptor


def test_an_export_without_weights_is_named(dataset: Dataset, tmp_path: Path) -> None:
    folder = export("vit", dataset, tmp_path / "out")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"{folder} has no model.safetensors: put"):
        exported(dataset, folder)


# hub


@pytest.mark.parametrize(
    ("maker", "modality", "dim", "pool"),
    [
        (hub_models.clip, "image", 6, "projection"),
        (hub_models.clip, "text", 6, "projection"),
        (hub_models.siglip, "image", 16, "projection"),
        (hub_models.siglip, "text", 16, "projection"),
        (hub_models.clap, "speech", 6, "projection"),
        (hub_models.clap, "text", 6, "projection"),
        (hub_models.bert, "text", 16, "first"),
        (hub_models.roberta, "text", 16, "first"),
        (hub_models.wav2vec2, "speech", 16, "mean"),
        (hub_models.vit, "image", 16, "pooler"),
        (hub_models.resnet, "image", 16, "pooler"),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_hub_models_give_unit_features_of_any_batch(
    maker: Make, modality: str, dim: int, pool: str, dataset: Dataset, tmp_path: Path
) -> None:
    folder = maker(tmp_path / "model")
    perceptor = hub(dataset, modality, folder)
    x = samples(dataset, perceptor)
    e = perceptor.encode(x)
    assert_unit(e, 6, dim)
    alone = torch.cat([perceptor.encode(row[None]) for row in x])
    torch.testing.assert_close(e, alone, atol=1e-5, rtol=0)
    assert float((e[0] - e[1]).abs().max()) > 1e-4
    assert perceptor.identity.startswith(f"hub:model/{pool}@")
    assert perceptor.encode(perceptor.transform.zeros()[None]).isfinite().all()


def test_clip_features_are_those_of_its_own_projection(dataset: Dataset, tmp_path: Path) -> None:
    folder = hub_models.clip(tmp_path / "model")
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    texts = ["a red thing", "a blue thing number 7", "a pink"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.text_model(**batch).pooler_output @ model.text_projection.weight.T
    perceptor = hub(dataset, "text", folder)
    e = perceptor.encode(torch.stack([perceptor.transform(t, "") for t in texts]))
    torch.testing.assert_close(e, F.normalize(expected, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pool", ["first", "mean"])
def test_text_pools_skip_padding(pool: str, dataset: Dataset, tmp_path: Path) -> None:
    folder = hub_models.bert(tmp_path / "model", pooler=False)
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    texts = ["a red thing", "a blue thing number 7"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    wanted = hidden[:, 0] if pool == "first" else (hidden * mask).sum(1) / mask.sum(1)
    perceptor = hub(dataset, "text", folder, pool=pool)
    e = perceptor.encode(torch.stack([perceptor.transform(t, "") for t in texts]))
    torch.testing.assert_close(e, F.normalize(wanted, dim=1), atol=1e-5, rtol=0)


def test_sounds_are_resampled_and_run_at_their_own_length(dataset: Dataset, tmp_path: Path) -> None:
    folder = hub_models.wav2vec2(tmp_path / "model")
    perceptor = hub(dataset, "speech", folder, seconds=0.5)
    model = AutoModel.from_pretrained(folder).eval()
    wave = np.sin(np.arange(RATE // 4, dtype=np.float32) / 3)
    x = perceptor.transform(wave, "")
    assert x.shape == (RATE,)
    assert int(x.isfinite().sum()) == RATE // 2  # 0.25 s at twice the rate
    long = perceptor.transform(np.resize(wave, 2 * RATE), "")
    with torch.no_grad():
        wanted = model(x[None, : RATE // 2]).last_hidden_state.mean(1)
    e = perceptor.encode(torch.stack([x, long]))
    torch.testing.assert_close(e[:1], F.normalize(wanted, dim=1), atol=1e-5, rtol=0)
    tiny = perceptor.encode(perceptor.transform(wave[:3], "")[None])
    assert tiny.isfinite().all()


def test_long_sounds_give_the_same_spectrogram_every_time(dataset: Dataset, tmp_path: Path) -> None:
    perceptor = hub(dataset, "speech", hub_models.clap(tmp_path / "model"))
    wave = np.random.default_rng(0).normal(size=4 * RATE).astype(np.float32)
    assert torch.equal(perceptor.transform(wave, "a"), perceptor.transform(wave, "b"))


def test_grey_and_16_bit_pictures_become_what_the_model_reads(
    dataset: Dataset, tmp_path: Path
) -> None:
    perceptor = hub(dataset, "image", hub_models.vit(tmp_path / "model"))
    grey = np.random.default_rng(0).integers(0, 256, (20, 30, 1), dtype=np.uint8)
    x = perceptor.transform(grey, "")
    assert x.shape == (3, 16, 16)
    assert torch.equal(x, perceptor.transform(np.repeat(grey, 3, 2), ""))
    assert torch.equal(x, perceptor.transform(grey.astype(np.uint16) * 257, ""))
    with pytest.raises(DecodeError, match="expected 3 channels, got 5"):
        perceptor.transform(np.zeros((9, 9, 5), np.uint8), "")
    depth = hub(dataset, "image", hub_models.vit(tmp_path / "depth", channels=1))
    assert depth.transform(grey, "").shape == (1, 16, 16)


def test_long_texts_lose_their_end(dataset: Dataset, tmp_path: Path) -> None:
    folder = hub_models.roberta(tmp_path / "model")
    perceptor = hub(dataset, "text", folder)
    x = perceptor.transform("red " * 100, "")
    assert x.shape == (12,)  # positions of RoBERTa begin at 2
    assert x[-1] == 2
    assert perceptor.encode(x[None]).isfinite().all()
    assert hub(dataset, "text", folder, tokens=5).transform("red " * 100, "").shape == (5,)
    with pytest.raises(DecodeError, match="expected text"):
        perceptor.transform(np.zeros(3), "")


def test_transforms_travel_to_loader_workers(dataset: Dataset, tmp_path: Path) -> None:
    folder = hub_models.clip(tmp_path / "model")
    for modality in ("image", "text"):
        perceptor = hub(dataset, modality, folder)
        again = pickle.loads(pickle.dumps(perceptor.transform))  # noqa: S301
        value = "a red thing" if modality == "text" else np.ones((9, 9, 1), np.uint8)
        assert torch.equal(again(value, ""), perceptor.transform(value, ""))
        perceptor.transform.save(tmp_path / f"saved-{modality}")
        assert list((tmp_path / f"saved-{modality}").glob("*.json"))


def test_images_without_pooler_weights_fall_back_to_the_first_token(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = hub_models.vit(tmp_path / "model", pooler=False)
    perceptor = hub(dataset, "image", folder)
    assert "/first@" in perceptor.identity
    assert torch.equal(
        perceptor.encode(samples(dataset, perceptor)),
        hub(dataset, "image", folder).encode(samples(dataset, perceptor)),
    )
    with pytest.raises(UserError, match="no weights for the pooler"):
        hub(dataset, "image", folder, pool="pooler")


def test_pools_that_a_model_does_not_have_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    clip, wave = hub_models.clip(tmp_path / "clip"), hub_models.wav2vec2(tmp_path / "wave")
    with pytest.raises(UserError, match="CLIPModel has no tower for audio"):
        hub(dataset, "speech", clip)
    with pytest.raises(UserError, match="CLIPModel has no pool 'mean', but projection"):
        hub(dataset, "image", clip, pool="mean")
    with pytest.raises(UserError, match="Wav2Vec2Model has no pool 'projection'"):
        hub(dataset, "speech", wave, pool="projection")
    with pytest.raises(UserError, match="the model has no pooler"):
        hub(dataset, "speech", wave, pool="pooler")
    with pytest.raises(UserError, match="hub models read image, audio, text, not series"):
        hub(dataset, "force", wave)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = hub_models.vit(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model.bin, a pickle.*save_pretrained"):
        hub(dataset, "image", folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "cannot read its image preprocessor"),
        (lambda f: (f / "model.safetensors").write_bytes(b"short"), "cannot read its weights"),
        (lambda f: (f / "config.json").write_text('{"model_type": "nothing"}'), "its weights"),
    ],
)
def test_broken_folders_are_named(
    damage: Callable[[Path], Any], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    folder = hub_models.vit(tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=rf"{folder}.*{message}"):
        hub(dataset, "image", folder)


def test_a_checkpoint_of_another_model_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    folder = hub_models.vit(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of ViTModel \(layernorm.weight"):
        hub(dataset, "image", folder)


def test_code_beside_the_weights_is_not_run(dataset: Dataset, tmp_path: Path) -> None:
    folder = hub_models.vit(tmp_path / "model")
    (folder / "trap.py").write_text("raise SystemExit('ran')")
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "trap", "auto_map": {"AutoConfig": "trap.C", "AutoModel": "trap.M"}}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot read its weights"):
        hub(dataset, "image", folder)


def test_a_missing_id_names_file_home_folder_and_option(dataset: Dataset) -> None:
    with pytest.raises(UserError) as caught:
        hub(dataset, "image", Path("someone/no-such-model"))
    text = str(caught.value)
    for part in (
        "model.safetensors",
        "https://huggingface.co/someone/no-such-model",
        str(Path("someone/no-such-model").absolute()),
        "set allow_download to true",
    ):
        assert part in text
    with pytest.raises(UserError, match=r"perceptor folder /no/such/folder does not exist"):
        hub(dataset, "image", Path("/no/such/folder"))


def test_downloads_happen_only_when_allowed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub_models.vit(tmp_path / "snapshot")
    asked: list[bool] = []

    def download(path: str, *, local_files_only: bool, allow_patterns: list[str]) -> str:
        asked.append(local_files_only)
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        return str(folder)

    monkeypatch.setattr(hub_module, "snapshot_download", download)
    with pytest.raises(UserError, match="allow_download is false"):
        hub(dataset, "image", Path("someone/vit"))
    perceptor = hub(dataset, "image", Path("someone/vit"), allow_download=True)
    assert asked == [True, False]
    assert perceptor.identity.startswith("hub:someone/vit/pooler@")
