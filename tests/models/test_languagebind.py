"""LanguageBind: what the original computes, strict loading, and clear refusals."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outmodal.data.manifest import Dataset, Modality
from outmodal.errors import UserError
from outmodal.models.perceptors import LanguageBindPerceptor, Perceptor, load_perceptor
from outmodal.models.perceptors.checkpoint import Checkpoint
from outmodal.models.perceptors.languagebind import (
    adapter_targets,
    expected_shapes,
    load_tower,
    settle,
)
from outmodal.models.perceptors.languagebind_settings import (
    LanguageBindSettings,
    TextSettings,
    VisionSettings,
    read_settings,
)
from outmodal.models.perceptors.languagebind_towers import LanguageBindTower
from tests.data.tiny import make_tiny
from tests.models.golden_towers import LANGUAGEBIND, assert_equal, decoded, read_json

VARIANTS = sorted(path.parent.name for path in LANGUAGEBIND.glob("*/model.safetensors"))
RELEASED = read_json(LANGUAGEBIND / "released_manifest.json")
MODEL, CONFIG = "model.safetensors", "config.json"


def golden_tower(folder: Path, side: str) -> LanguageBindTower:
    checkpoint = Checkpoint([folder / MODEL])
    return load_tower(checkpoint, settle(read_settings(folder), checkpoint), side, torch.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    tiny = make_tiny(tmp_path_factory.mktemp("tiny"))
    film = Modality(kind="video", ext="mp4")
    modalities = {**tiny.manifest.modalities, "film": film}
    return Dataset(tiny.root, tiny.manifest.model_copy(update={"modalities": modalities}))


def copied(variant: str, folder: Path, **vision: Any) -> Path:
    """A checkpoint's folder with other fields in its vision_config."""
    shutil.copytree(LANGUAGEBIND / variant, folder, dirs_exist_ok=True)
    config = read_json(folder / CONFIG)
    config["vision_config"].update(vision)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def changed(variant: str, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A checkpoint's folder with other tensors."""
    copied(variant, folder)
    state = load_file(folder / MODEL)
    change(state)
    save_file(state, folder / MODEL)
    return folder


def load(dataset: Dataset, modality: str, path: Path | str, **options: Any) -> Perceptor:
    config = LanguageBindPerceptor(modality=modality, path=str(path), **options)
    return load_perceptor(config, dataset)


# what the original computes


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_vision_side_computes_what_the_original_does(variant: str) -> None:
    stored = load_file(LANGUAGEBIND / variant / "io.safetensors")
    tower = golden_tower(LANGUAGEBIND / variant, "vision")
    x = decoded(stored["pixel_values_u8"])
    with torch.no_grad():
        hidden = tower.vision_model.encoder(tower.vision_model.embed(x))
        assert_equal(hidden, stored["vision.last_hidden_state"])
        assert_equal(tower.vision_model(x), stored["vision.pooler_output"])
        assert_equal(tower.project(x), stored["vision.projected"])
        assert_equal(tower(x), stored["vision.embedding"])
        assert_equal(tower.scale() * tower(x), stored["vision.embedding_scaled"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_text_side_computes_what_the_original_does(variant: str) -> None:
    stored = load_file(LANGUAGEBIND / variant / "io.safetensors")
    tower = golden_tower(LANGUAGEBIND / variant, "text")
    ids, read = stored["input_ids"], stored["attention_mask"].bool()
    with torch.no_grad():
        text = tower.text_model
        hidden = text.final_layer_norm(text.encoder(text.embeddings(ids)))
        # upstream masks padding as well, which changes the rows of padding and no others
        assert_equal(hidden[read], stored["text.last_hidden_state"][read])
        assert_equal(text(ids), stored["text.pooler_output"])
        assert_equal(tower.project(ids), stored["text.projected"])
        assert_equal(tower(ids), stored["text.embedding"])
        vision = golden_tower(LANGUAGEBIND / variant, "vision")
        logits = tower(ids) @ vision(decoded(stored["pixel_values_u8"])).T
        assert_equal(vision.scale() * logits, stored["logits_per_text"])
    assert tower.scale() == 1.0


# the released sizes


def released_settings(name: str) -> LanguageBindSettings:
    huge, video = "Huge" in name, "Video" in name
    rank = RELEASED[name]["assumed_lora_r"]
    text: dict[str, Any] = {"hidden_act": "gelu", "hidden_size": 1024 if huge else 768}
    text |= {"num_hidden_layers": 24 if huge else 12, "intermediate_size": 4096 if huge else 3072}
    text |= {"num_attention_heads": 16 if huge else 12}
    vision: dict[str, Any] = {"hidden_act": "gelu", "patch_size": 14, "num_attention_heads": 16}
    vision |= {"hidden_size": 1280 if huge else 1024, "num_hidden_layers": 32 if huge else 24}
    vision |= {"intermediate_size": 5120 if huge else 4096, "lora_r": rank}
    if video:
        vision |= {"add_time_attn": True, "num_frames": 8}
    if "V1.5" in name:
        vision |= {"clip_type": "vl_new"}
    if "Audio" in name:
        vision |= {"num_mel_bins": 112, "target_length": 1036}
    return LanguageBindSettings(
        model_type="LanguageBind" + name.split("_")[1],
        projection_dim=1024 if huge else 768,
        text_config=TextSettings(**text),
        vision_config=VisionSettings(**vision),
    )


def released_shapes(name: str) -> dict[str, list[int]]:
    """Keys and shapes of a released checkpoint, its layers written out."""
    entry = RELEASED[name]
    shapes = {}
    for key, shape in entry["shapes"].items():
        layers = entry["text_layers" if key.startswith("text") else "vision_layers"]
        for layer in range(layers if "{i}" in key else 1):
            shapes[key.replace("{i}", str(layer))] = shape
    assert len(shapes) == entry["n_keys"]
    return shapes


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_sizes_have_the_released_keys_and_shapes(name: str) -> None:
    settings, released = released_settings(name), released_shapes(name)
    ours = {key: list(shape) for key, shape in expected_shapes(settings).items()}
    stored_only = {key for key in released if key.endswith(".position_ids")}
    assert len(stored_only) == 2
    adapters = {key for key in released if ".lora_" in key}
    plain = {
        key.replace("encoder.base_model.model.", "encoder."): shape
        for key, shape in released.items()
        if key not in adapters | stored_only
    }
    assert ours == plain
    assert len(adapters) == (2 * len(adapter_targets(settings.vision_config)) if adapters else 0)
    count = sum(torch.Size(s).numel() for key, s in released.items() if key not in stored_only)
    assert count == RELEASED[name]["n_parameters"]


# as a perceptor


def test_features_go_through_the_side_that_the_kind_needs(dataset: Dataset) -> None:
    x = torch.randn(2, 3, 4, 56, 56)
    for variant in ("video_lora", "video_v15_ft"):
        perceptor = load(dataset, "film", LANGUAGEBIND / variant)
        assert perceptor.transform.shape == (3, 4, 56, 56)
        assert perceptor.identity.startswith("languagebind:LanguageBindVideo/vision@")
        e = perceptor.encode(x)
        assert (e.shape, e.dtype) == ((2, 20), torch.float32)
        torch.testing.assert_close(e.norm(dim=1), torch.ones(2))
    sound = load(dataset, "speech", LANGUAGEBIND / "audio_ft")
    assert sound.transform.shape == (3, 28, 98)
    still = load(dataset, "image", LANGUAGEBIND / "image", precision="bf16")
    assert still.encode(torch.randn(2, 3, 56, 56)).shape == (2, 20)


def test_texts_go_through_the_language_side(dataset: Dataset, tmp_path: Path) -> None:
    def widen(state: dict[str, Tensor]) -> None:
        drawn = torch.randn(49408, 24, generator=torch.Generator().manual_seed(0))
        state["text_model.embeddings.token_embedding.weight"] = drawn

    folder = changed("image", tmp_path / "image", widen)
    config = read_json(folder / CONFIG)
    config["text_config"]["vocab_size"] = 49408
    (folder / CONFIG).write_text(json.dumps(config))
    perceptor = load(dataset, "text", folder)
    assert perceptor.identity.startswith("languagebind:LanguageBindImage/text@")
    x = torch.stack([perceptor.transform(text, "") for text in ("a dog", "a cat", "a dog")])
    e = perceptor.encode(x)
    torch.testing.assert_close(e[0], e[2])
    assert float((e[0] - e[1]).abs().max()) > 1e-3


def test_inputs_follow_the_checkpoints_config(dataset: Dataset, tmp_path: Path) -> None:
    sound = load(dataset, "speech", LANGUAGEBIND / "audio_ft").transform.config
    assert sound.model_dump()["std"] == pytest.approx(2 * 4.5689974)
    folder = copied("depth_lora", tmp_path / "depth", max_depth=7.5)
    assert load(dataset, "image", folder).transform.config.model_dump()["farthest"] == 7.5
    edges = load(dataset, "image", LANGUAGEBIND / "image", input={"antialias": True})
    assert edges.transform.config.model_dump()["antialias"] is True


def test_the_generation_is_found_in_the_shapes_or_beside_the_vision_config(
    tmp_path: Path,
) -> None:
    io = load_file(LANGUAGEBIND / "video_v15_ft" / "io.safetensors")
    for number, beside in enumerate(({}, {"clip_type": "vl_new", "tube_size": 1})):
        folder = copied("video_v15_ft", tmp_path / str(number), clip_type=None)
        config = read_json(folder / CONFIG)
        (folder / CONFIG).write_text(json.dumps({**config, **beside}))
        tower = golden_tower(folder, "vision")
        with torch.no_grad():
            assert_equal(tower(decoded(io["pixel_values_u8"])), io["vision.embedding"])


def test_sharded_and_pickled_files_give_the_same_features(dataset: Dataset, tmp_path: Path) -> None:
    state = load_file(LANGUAGEBIND / "image" / MODEL)
    names = sorted(state)
    parts = {"a": names[::2], "b": names[1::2]}
    sharded, pickled = tmp_path / "sharded", tmp_path / "pickled"
    for folder in (sharded, pickled):
        folder.mkdir()
        shutil.copy(LANGUAGEBIND / "image" / CONFIG, folder)
    for part, held in parts.items():
        save_file({name: state[name] for name in held}, sharded / f"model-{part}.safetensors")
    index = {name: f"model-{part}.safetensors" for part, held in parts.items() for name in held}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    torch.save(state, pickled / "pytorch_model.bin")
    x = torch.randn(2, 3, 56, 56)
    expected = load(dataset, "image", LANGUAGEBIND / "image").encode(x)
    for folder in (sharded, pickled):
        assert torch.equal(load(dataset, "image", folder).encode(x), expected)
    (sharded / "model-b.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-b\.safetensors"):
        load(dataset, "image", sharded)


def test_the_log_says_what_distinguishes_the_file(
    dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        perceptor = load(dataset, "film", LANGUAGEBIND / "video_lora")
    said = caplog.text
    digest = perceptor.identity.partition("@")[2]
    for part in (
        digest,
        "position_ids dropped",
        "rank 4 (layout plain), times 4",
        "gelu",
        "grid 4x4",
    ):
        assert part in said


# refusals


@pytest.mark.parametrize(
    ("modality", "variant", "message"),
    [
        ("image", "video_ft", r"LanguageBindVideo.*reads video and text, and modality 'image' is"),
        ("speech", "depth_lora", r"LanguageBindDepth.*reads image and text.*'speech' is audio"),
        ("pose", "image", r"reads image and text.*'pose' is vector"),
    ],
)
def test_modalities_that_the_checkpoint_does_not_have_are_refused(
    modality: str, variant: str, message: str, dataset: Dataset
) -> None:
    with pytest.raises(UserError, match=message):
        load(dataset, modality, LANGUAGEBIND / variant)


def test_a_checkpoint_of_another_tower_is_listed(dataset: Dataset, tmp_path: Path) -> None:
    folder = copied("image", tmp_path / "mixed")
    shutil.copy(LANGUAGEBIND / "video_ft" / MODEL, folder)
    with pytest.raises(UserError, match=r"(?s)video checkpoint.*not expected \(22\)") as caught:
        load(dataset, "image", folder)
    assert "vision_model.encoder.layers.*.temporal_attn.q_proj.weight (2)" in str(caught.value)
    shutil.copy(LANGUAGEBIND / "audio_ft" / MODEL, folder)
    with pytest.raises(UserError, match=r"position_embedding.weight is \[15, 32\], expected \[17"):
        load(dataset, "image", folder)


def lose(state: dict[str, Tensor]) -> None:
    del state["vision_model.encoder.layers.1.mlp.fc1.bias"]


def gain(state: dict[str, Tensor]) -> None:
    state["vision_model.encoder.layers.0.temporal_mlp.fc1.weight"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose, r"missing \(1\): .*layers.1.mlp.fc1.bias"),
        (gain, r"not expected \(1\): .*mporal_mlp"),
    ],
)
def test_missing_and_extra_keys_are_listed_whichever_side_is_read(
    change: Callable[[dict[str, Tensor]], None], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    folder = changed("image", tmp_path / "changed", change)
    for modality in ("image", "text"):
        with pytest.raises(UserError, match=message):
            load(dataset, modality, folder)


def test_a_folder_without_position_ids_is_complete(tmp_path: Path) -> None:
    def drop(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.endswith("position_ids")]:
            del state[key]

    golden_tower(changed("image", tmp_path / "new", drop), "text")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json cannot be read"),
        ("[]", "config.json: it: "),
        ('{"model_type": "clip"}', "config.json: text_config: "),
        (
            '{"model_type": "LanguageBindImage", "text_config": {},'
            ' "vision_config": {"hidden_act": "relu"}}',
            "vision_config.hidden_act: .*gelu or quick_gelu",
        ),
        (
            '{"model_type": "LanguageBindVideo", "text_config": {},'
            ' "vision_config": {"tube_size": 2}}',
            "vision_config.tube_size",
        ),
        (
            '{"model_type": "clip", "text_config": {}, "vision_config": {}}',
            "model_type 'clip'.*perceptor name: hub",
        ),
    ],
)
def test_broken_and_foreign_configs_are_named(
    text: str, message: str, dataset: Dataset, tmp_path: Path
) -> None:
    folder = copied("image", tmp_path / "broken")
    (folder / CONFIG).write_text(text)
    with pytest.raises(UserError, match=message):
        load(dataset, "image", folder)


def test_without_a_config_the_message_says_so(dataset: Dataset, tmp_path: Path) -> None:
    folder = copied("image", tmp_path / "bare")
    (folder / CONFIG).unlink()
    with pytest.raises(UserError, match=r"bare has no config.json: put"):
        load(dataset, "image", folder)


def test_inputs_that_positions_are_not_made_for_are_refused(dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"shape \[3, 56, 56\].*give \[3, 224, 224\]"):
        load(dataset, "image", LANGUAGEBIND / "image", input={"size": 224})


def test_frames_must_be_as_many_as_positions() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5, 56, 56\), not \(3, 4, 56, 56\)"):
        golden_tower(LANGUAGEBIND / "video_ft", "vision")(torch.zeros(1, 3, 5, 56, 56))


def test_without_weights_the_message_says_what_to_put_where(
    dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load(dataset, "image", tmp_path / "image")
    for part in ("config.json", "huggingface.co/LanguageBind", "MIT", f"folder {tmp_path}/image"):
        assert part in str(caught.value)


def test_it_knows_its_own_features_without_loading(dataset: Dataset) -> None:
    folder = LANGUAGEBIND / "image"
    names = LanguageBindPerceptor(modality="image", path=str(folder)).identities()
    assert load(dataset, "image", folder).identity in names
    assert len(names) == 2
