"""ImageBind: what the original computes, strict loading, and clear refusals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from outmodal.data.decode import decode
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.shards import read_shard
from outmodal.errors import UserError
from outmodal.models.perceptors import (
    ImageBindPerceptor,
    Perceptor,
    PerceptorConfig,
    load_perceptor,
)
from outmodal.models.perceptors.checkpoint import Checkpoint
from outmodal.models.perceptors.imagebind import (
    SIZES,
    expected_shapes,
    load_tower,
    read_settings,
)
from outmodal.models.perceptors.imagebind_towers import ImageBindSettings, ImageBindTower
from outmodal.models.perceptors.towers import unit
from tests.data.tiny import make_tiny
from tests.models.golden_towers import (
    IMAGEBIND,
    assert_equal,
    decoded,
    imagebind_settings,
    read_json,
    readable_imagebind,
)

STATE = IMAGEBIND / "state_dict.safetensors"
CASES = read_json(IMAGEBIND / "config.json")["cases"]
State = dict[str, Tensor]


def golden_tower(name: str) -> ImageBindTower:
    return load_tower(Checkpoint([STATE]), imagebind_settings(), name, torch.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return readable_imagebind(tmp_path_factory.mktemp("imagebind") / "weights")


def with_spec(dataset: Dataset, **modalities: Modality) -> Dataset:
    """The data set with other records of its modalities."""
    return Dataset(dataset.root, dataset.manifest.model_copy(update={"modalities": modalities}))


def load(dataset: Dataset, modality: str, path: Path, **options: Any) -> Perceptor:
    config = ImageBindPerceptor(modality=modality, path=str(path), **options)
    return load_perceptor(config, dataset)


def inputs(dataset: Dataset, perceptor: Perceptor, count: int = 3) -> Tensor:
    spec = dataset.modality(perceptor.modality)
    shard = dataset.shard_path(dataset.split("train").shards[0])
    rows = [
        perceptor.transform(decode(spec, members[f"{perceptor.modality}.{spec.ext}"]), key)
        for _, key, members in read_shard(shard, stop=count)
    ]
    return torch.stack(rows)


# what the original computes


@pytest.mark.parametrize("case", CASES)
def test_towers_compute_what_the_original_does(case: str) -> None:
    stored = load_file(IMAGEBIND / "outputs.safetensors")
    tower = golden_tower(CASES[case]["modality"])
    x = decoded(load_file(IMAGEBIND / "inputs.safetensors")[case])
    flat = x.flatten(0, 1) if x.ndim > 4 else x
    with torch.no_grad():
        tokens = tower.preprocessor(flat)
        assert_equal(tokens, stored[f"{case}.tokens"])
        assert_equal(tower.trunk(tokens, tower.mask()), stored[f"{case}.trunk"])
        assert_equal(tower.project(flat), stored[f"{case}.head"])
        assert_equal(tower.scale() * unit(tower.project(flat)), stored[f"{case}.post"])
        assert_equal(tower.scale() * tower(x), stored[f"{case}.embedding"])


def test_every_key_of_the_checkpoint_is_used_by_one_tower() -> None:
    used = [
        key
        for name in imagebind_settings().towers
        for key in expected_shapes(
            ImageBindSettings(dim=32, towers={name: imagebind_settings().towers[name]})
        )
    ]
    assert len(used) == len(set(used))
    assert set(used) == set(load_file(STATE))


def test_the_released_size_has_the_released_keys_and_shapes() -> None:
    manifest = read_json(IMAGEBIND / "imagebind_huge_manifest.json")
    shapes = expected_shapes(ImageBindSettings())
    assert {name: list(shape) for name, shape in shapes.items()} == manifest["shapes"]
    parameters = sum(s.numel() for k, s in shapes.items() if k not in manifest["buffers"])
    assert len(shapes) == manifest["n_keys"] == 1311
    assert parameters == manifest["n_parameters"] == 1_200_781_057


def test_scales_are_clamped_and_reported_but_not_applied() -> None:
    assert golden_tower("vision").scale() == 1.0
    assert golden_tower("text").scale() == pytest.approx(100.0)
    assert 1.0 < golden_tower("audio").scale() < 100.0


def test_positions_stretch_for_square_pictures_only() -> None:
    with pytest.raises(ValueError, match="no square grid"):
        golden_tower("audio")(torch.zeros(1, 1, 128, 304))


# as a perceptor


@pytest.mark.parametrize(
    ("modality", "tower", "shape"),
    [
        ("image", "auto", (3, 224, 224)),
        ("image", "thermal", (1, 224, 224)),
        ("image", "depth", (1, 224, 224)),
        ("speech", "auto", (3, 1, 128, 204)),
        ("text", "auto", (77,)),
    ],
)
def test_features_of_a_data_set_have_unit_length_in_any_batch(
    modality: str, tower: str, shape: tuple[int, ...], dataset: Dataset, weights: Path
) -> None:
    if tower == "depth":
        deep = Modality(kind="image", ext="png", channels=1)
        dataset = with_spec(dataset, image=deep)
    perceptor = load(dataset, modality, weights, tower=tower)
    if tower == "depth":
        x = torch.rand(3, *shape)
    else:
        x = inputs(dataset, perceptor)
    assert x.shape == (3, *shape)
    e = perceptor.encode(x)
    assert e.shape == (3, perceptor.dim) == (3, 32)
    assert e.dtype == torch.float32
    torch.testing.assert_close(e.norm(dim=1), torch.ones(3))
    alone = torch.cat([perceptor.encode(row[None]) for row in x])
    torch.testing.assert_close(e, alone, atol=1e-5, rtol=0)
    used = modality if tower == "auto" else tower
    names = {"image": "vision", "speech": "audio"}
    assert perceptor.identity.startswith(f"imagebind:{names.get(used, used)}@")
    assert len(perceptor.identity.partition("@")[2]) == 16


def test_series_go_through_the_tower_of_inertial_sensors(dataset: Dataset, weights: Path) -> None:
    motion = Modality(kind="series", ext="npy", shape=(2000, 6))
    perceptor = load(with_spec(dataset, motion=motion), "motion", weights)
    assert perceptor.transform.shape == (6, 2000)
    e = perceptor.encode(torch.randn(2, 6, 2000))
    torch.testing.assert_close(e.norm(dim=1), torch.ones(2))


def test_films_are_clips_of_two_frames(dataset: Dataset, weights: Path) -> None:
    film = Modality(kind="video", ext="mp4")
    perceptor = load(with_spec(dataset, film=film), "film", weights)
    assert perceptor.transform.shape == (15, 3, 2, 224, 224)
    assert perceptor.identity.startswith("imagebind:vision@")


def test_clips_are_averaged_at_unit_length_whatever_the_scale(
    dataset: Dataset, weights: Path, tmp_path: Path
) -> None:
    perceptor = load(dataset, "speech", weights)
    x = torch.randn(2, 3, 1, 128, 204)
    clips = torch.stack([perceptor.encode(x[:, [i]]) for i in range(3)])
    mean = F.normalize(clips.mean(0), dim=-1)
    torch.testing.assert_close(perceptor.encode(x), mean, atol=1e-5, rtol=0)

    def louder(state: State) -> None:
        state["modality_postprocessors.audio.1.log_logit_scale"] += 2.0

    again = load(dataset, "speech", changed(weights, tmp_path, louder))
    assert torch.equal(again.encode(x), perceptor.encode(x))
    assert again.identity != perceptor.identity


def test_bf16_is_close_and_both_formats_are_the_same(
    dataset: Dataset, weights: Path, tmp_path: Path
) -> None:
    exact = load(dataset, "speech", weights)
    half = load(dataset, "speech", weights, precision="bf16")
    x = inputs(dataset, exact)
    assert float((half.encode(x) * exact.encode(x)).sum(1).min()) > 0.99
    torch.save(load_file(weights / "model.safetensors"), tmp_path / "imagebind_huge.pth")
    (tmp_path / SIZES).write_bytes((weights / SIZES).read_bytes())
    for path in (tmp_path, tmp_path / "imagebind_huge.pth"):
        assert torch.equal(load(dataset, "speech", path).encode(x), exact.encode(x))


def test_the_checksum_is_logged(
    dataset: Dataset, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        perceptor = load(dataset, "text", weights)
    digest = perceptor.identity.partition("@")[2]
    assert any(digest in record.getMessage() for record in caplog.records)


# refusals


def changed(weights: Path, folder: Path, change: Callable[[State], None]) -> Path:
    """A copy of the weights that `change` was applied to."""
    folder.mkdir(exist_ok=True)
    (folder / SIZES).write_bytes((weights / SIZES).read_bytes())
    state = load_file(weights / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder


def drop_blocks(state: State) -> None:
    for key in [key for key in state if ".text.blocks.2." in key]:
        del state[key]


def add_key(state: State) -> None:
    state["modality_heads.touch.0.weight"] = torch.zeros(3)


def reshape_key(state: State) -> None:
    state["modality_heads.audio.2.weight"] = torch.zeros(7, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_blocks, r"missing \(12\).*modality_trunks.text.blocks.2.attn.in_proj_weight"),
        (add_key, r"not expected \(1\): modality_heads.touch.0.weight"),
        (reshape_key, r"another shape \(1\): modality_heads.audio.2.weight is \[7, 24\]"),
    ],
)
def test_a_checkpoint_with_other_keys_is_refused_whichever_tower_is_read(
    change: Callable[[State], None],
    message: str,
    dataset: Dataset,
    weights: Path,
    tmp_path: Path,
) -> None:
    folder = changed(weights, tmp_path, change)
    for modality in ("image", "text"):
        with pytest.raises(UserError, match=message):
            load(dataset, modality, folder)


def test_the_checkpoint_of_another_perceptor_is_named(dataset: Dataset) -> None:
    other = IMAGEBIND.parent / "languagebind" / "video_ft" / "model.safetensors"
    with pytest.raises(UserError, match="look like a video checkpoint of LanguageBind"):
        load(dataset, "image", other)
    # without sizes beside it, a file should be the released one
    with pytest.raises(UserError, match=r"trunks\.vision\.blocks\.\*\.norm_1\.weight \(29\)"):
        load(dataset, "image", STATE)


def test_modalities_that_imagebind_does_not_have_are_refused(
    dataset: Dataset, weights: Path
) -> None:
    with pytest.raises(UserError, match=r"ImageBind reads image, video.*'pose' is vector"):
        load(dataset, "pose", weights)
    with pytest.raises(UserError, match=r"'audio' does not read image.*vision or depth or therm"):
        load(dataset, "image", weights, tower="audio")
    with pytest.raises(UserError, match="no modality 'smell'"):
        load(dataset, "smell", weights)


def test_sizes_beside_the_weights_are_checked(
    dataset: Dataset, weights: Path, tmp_path: Path
) -> None:
    folder = changed(weights, tmp_path, lambda state: None)
    (folder / SIZES).write_text('{"dim": "large"}')
    with pytest.raises(UserError, match=rf"{SIZES}: dim: "):
        load(dataset, "image", folder)
    sizes = read_settings(weights)
    few = ImageBindSettings(dim=32, towers={"text": sizes.towers["text"]})
    (folder / SIZES).write_text(few.model_dump_json())
    with pytest.raises(UserError, match="has no tower 'vision'"):
        load(dataset, "image", folder)


def test_inputs_that_positions_are_not_made_for_are_refused(
    dataset: Dataset, weights: Path
) -> None:
    with pytest.raises(UserError, match=r"reads inputs of shape \[3, 2, 224, 224\].*112, 112"):
        load(dataset, "image", weights, input={"size": 112})


def test_without_weights_the_message_says_what_to_put_where(
    dataset: Dataset, tmp_path: Path
) -> None:
    missing = tmp_path / "weights" / "imagebind_huge.pth"
    for path in (missing, missing.parent):
        with pytest.raises(UserError) as caught:
            load(dataset, "image", path)
        for part in (
            "imagebind_huge.pth",
            "https://dl.fbaipublicfiles.com/imagebind/",
            "CC BY-NC",
            "non-commercial",
            f"into the folder {missing.parent},",
        ):
            assert part in str(caught.value)


def test_a_recipe_names_the_perceptor(dataset: Dataset, weights: Path) -> None:
    recipe = {"name": "imagebind", "modality": "image", "path": str(weights), "tower": "thermal"}
    config = TypeAdapter(PerceptorConfig).validate_python(recipe)
    assert isinstance(config, ImageBindPerceptor)
    assert load_perceptor(config, dataset).identity.startswith("imagebind:thermal@")
    with pytest.raises(ValidationError, match="tower"):
        TypeAdapter(PerceptorConfig).validate_python({**recipe, "tower": "smell"})


def test_it_knows_its_own_features_without_loading(dataset: Dataset, weights: Path) -> None:
    for modality in ("image", "text"):
        loaded = load(dataset, modality, weights)
        auto = ImageBindPerceptor(modality=modality, path=str(weights))
        assert loaded.identity in auto.identities()
    assert len(ImageBindPerceptor(modality="image", path=str(weights)).identities()) == 6
    chosen = ImageBindPerceptor(modality="image", path=str(weights), tower="depth")
    assert [name.partition("@")[0] for name in chosen.identities()] == ["imagebind:depth"]
