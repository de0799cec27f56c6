"""The stored inputs, outputs and checkpoints of ImageBind and LanguageBind at small sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from outmodal.models.perceptors.imagebind import SIZES, expected_shapes
from outmodal.models.perceptors.imagebind_towers import ImageBindSettings

FOLDER = Path(__file__).parent.parent / "golden" / "towers"
IMAGEBIND = FOLDER / "imagebind"
LANGUAGEBIND = FOLDER / "languagebind"
TOLERANCE = 1e-5


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def decoded(stored: Tensor) -> Tensor:
    """An input as the models read it."""
    if stored.dtype == torch.uint8:
        return stored.float() / 64 - 2
    return stored.float() if stored.is_floating_point() else stored


def assert_equal(got: Tensor, expected: Tensor) -> None:
    """The goldens' own measure: max|a - b| / max|b|."""
    assert got.shape == expected.shape
    assert float((got - expected).abs().max() / expected.abs().max()) <= TOLERANCE


def imagebind_settings() -> ImageBindSettings:
    """Sizes of the small ImageBind."""
    config = read_json(IMAGEBIND / "config.json")
    made = config["constructor"]
    sizes = {}
    for name, huge in ImageBindSettings().towers.items():
        update = {
            "width": made[f"{name}_embed_dim"],
            "blocks": made[f"{name}_num_blocks"],
            "heads": made[f"{name}_num_heads"],
            "vocabulary": config["text_vocab_size"] if huge.vocabulary else 0,
        }
        sizes[name] = huge.model_copy(update=update)
    return ImageBindSettings(dim=made["out_embed_dim"], towers=sizes)


def readable_imagebind(folder: Path) -> Path:
    """Write a small ImageBind of random weights with the released vocabulary; returns its folder.

    Its tokens and inputs are those of the released one, so data sets can be read with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    small = imagebind_settings()
    text = small.towers["text"].model_copy(update={"vocabulary": 49408})
    settings = ImageBindSettings(dim=small.dim, towers={**small.towers, "text": text})
    (folder / SIZES).write_text(settings.model_dump_json(), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    state = {
        name: 0.2 * torch.randn(shape, generator=generator)
        for name, shape in expected_shapes(settings).items()
    }
    length = text.input[0]
    mask = torch.full((length, length), float("-inf")).triu(1)
    state["modality_preprocessors.text.mask"] = mask
    save_file(state, folder / "model.safetensors")
    return folder
