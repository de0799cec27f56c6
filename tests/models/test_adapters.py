"""Adapters folded at load: both key layouts, rank and alpha, and what must not be folded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.perceptors.adapters import Adapters, find_adapters
from outmodal.models.perceptors.checkpoint import Checkpoint
from outmodal.models.perceptors.languagebind import adapter_targets, load_tower
from outmodal.models.perceptors.languagebind_settings import read_settings
from tests.models.golden_towers import LANGUAGEBIND, assert_equal, decoded

ADAPTED = ["video_lora", "audio_lora", "depth_lora", "thermal_lora"]
PROJECTION = "vision_model.encoder.base_model.model.layers.0.self_attn.q_proj"
State = dict[str, Tensor]


def changed(variant: str, folder: Path, change: Callable[[State], State]) -> Path:
    state = change(load_file(LANGUAGEBIND / variant / "model.safetensors"))
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def embed(file: Path, variant: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(embedding, expected embedding) of the goldens' inputs."""
    settings = read_settings(LANGUAGEBIND / variant)
    tower = load_tower(Checkpoint([file]), settings, "vision", dtype)
    io = load_file(LANGUAGEBIND / variant / "io.safetensors")
    with torch.no_grad():
        return tower(decoded(io["pixel_values_u8"]).to(dtype)), io["vision.embedding"]


def find(file: Path, variant: str, rank: int | None = None) -> Adapters:
    vision = read_settings(LANGUAGEBIND / variant).vision_config
    checkpoint = Checkpoint([file])
    wanted = vision.lora_r if rank is None else rank
    targets = adapter_targets(vision)
    return find_adapters(checkpoint, checkpoint.shapes, targets, wanted, vision.lora_alpha)


def newer(state: State) -> State:
    """The layout since peft 0.7: base weights and biases behind `base_layer`."""
    adapted = {key.partition(".lora_A")[0] for key in state if ".lora_A" in key}
    return {
        re.sub(r"(_proj)\.(weight|bias)$", r"\1.base_layer.\2", key)
        if key.rpartition(".")[0] in adapted
        else key: tensor
        for key, tensor in state.items()
    }


@pytest.mark.parametrize("variant", ADAPTED)
def test_both_layouts_give_what_the_adapted_original_computes(variant: str, tmp_path: Path) -> None:
    file = changed(variant, tmp_path, newer)
    assert any(".base_layer.bias" in key for key in load_file(file))
    assert_equal(*embed(file, variant))
    assert find(file, variant).layout == "base_layer"
    assert find(LANGUAGEBIND / variant / "model.safetensors", variant).layout == "plain"


def test_the_scale_is_alpha_over_rank() -> None:
    held = find(LANGUAGEBIND / "depth_lora" / "model.safetensors", "depth_lora")
    assert (held.rank, held.scale) == (2, 8.0)
    name = adapter_targets(read_settings(LANGUAGEBIND / "depth_lora").vision_config)[0]
    weight = torch.randn(32, 32)
    a, b = held.pairs[name]
    torch.testing.assert_close(held.fold(name, weight), weight + 8.0 * b @ a)
    assert held.fold("visual_projection.weight", weight) is weight


def test_folding_happens_in_fp32_before_the_precision_changes(tmp_path: Path) -> None:
    def tiny_steps(state: State) -> State:
        """Base weights of 1 with adapters of 2^-9 each, lost if added up in bf16."""
        for key in state:
            if key.endswith("self_attn.q_proj.weight") and "base_model" in key:
                state[key] = torch.ones(32, 32)
            if "q_proj.lora_A" in key:
                state[key] = torch.full((2, 32), 2.0**-9)
            if "q_proj.lora_B" in key:
                state[key] = torch.full((32, 2), 0.5)
        return state

    file = changed("depth_lora", tmp_path, tiny_steps)
    settings = read_settings(LANGUAGEBIND / "depth_lora")
    tower = load_tower(Checkpoint([file]), settings, "vision", torch.bfloat16)
    weight = tower.state_dict()["vision_model.encoder.layers.0.self_attn.q_proj.weight"]
    assert float(weight[0, 0]) == 1 + 2.0**-6
    assert weight.dtype == torch.bfloat16


def test_a_merged_file_needs_no_adapters(tmp_path: Path) -> None:
    held = find(LANGUAGEBIND / "video_lora" / "model.safetensors", "video_lora")

    def merge(state: State) -> State:
        return {name: held.fold(name, state[key]).clone() for name, key in held.keys.items()}

    file = changed("video_lora", tmp_path, merge)
    assert find(file, "video_lora").layout == "none"
    assert_equal(*embed(file, "video_lora"))


def lose_half(state: State) -> State:
    del state[f"{PROJECTION}.lora_B.default.weight"]
    return state


def lose_both(state: State) -> State:
    return {key: t for key, t in state.items() if not key.startswith(f"{PROJECTION}.lora_")}


def lose_base(state: State) -> State:
    del state[f"{PROJECTION}.weight"]
    return state


def double_base(state: State) -> State:
    state[f"{PROJECTION}.base_layer.weight"] = torch.zeros(32, 32)
    return state


def misplace(state: State) -> State:
    for side, shape in (("A", (2, 32)), ("B", (64, 2))):
        key = PROJECTION.replace("self_attn.q_proj", "mlp.fc1")
        state[f"{key}.lora_{side}.default.weight"] = torch.zeros(shape)
    return state


def widen(state: State) -> State:
    state[f"{PROJECTION}.lora_A.default.weight"] = torch.zeros(2, 40)
    return state


def other_rank(state: State) -> State:
    state[f"{PROJECTION}.lora_A.default.weight"] = torch.zeros(3, 32)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_half, r"has .*q_proj.lora_A.default.weight but not the other half"),
        (lose_both, r"layers.0.self_attn.q_proj.weight has no adapter"),
        (lose_base, r"missing \(1\): .*layers.0.self_attn.q_proj.weight"),
        (double_base, r"holds .*q_proj.*weight, which are the same"),
        (misplace, r"layers.0.mlp.fc1.weight has one, which it should not"),
        (widen, r"made for a weight of shape \[32, 40\], which is \[32, 32\]"),
        (other_rank, r"has rank 3 and 2, but lora_r of config.json is 2"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    change: Callable[[State], State], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        embed(changed("depth_lora", tmp_path, change), "depth_lora")


def test_the_rank_of_the_config_counts() -> None:
    file = LANGUAGEBIND / "depth_lora" / "model.safetensors"
    for rank in (0, 4):
        with pytest.raises(UserError, match=rf"lora_r of config.json is {rank}"):
            find(file, "depth_lora", rank)
