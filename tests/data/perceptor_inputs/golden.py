"""The reference tensors, see tests/golden/preprocess/README.md."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

SHIPPED = Path(__file__).parents[2] / "golden" / "preprocess"
GOLDEN = Path(os.environ.get("OUTMODAL_GOLDEN", SHIPPED))

ASSETS = {
    "synthetic": {
        "image": "synthetic_rgb.png",
        "depth": "synthetic_depth16.png",
        "audio": "synthetic_stereo_22k.wav",
    },
    "languagebind": {
        "image": "languagebind_image_0.jpg",
        "depth": "languagebind_depth_0.png",
        "audio": "languagebind_audio_0.wav",
        "video": "languagebind_video_0.mp4",
    },
    "thermal_languagebind": {"image": "languagebind_thermal_0.jpg"},
}


@cache
def tensors(file: str) -> dict[str, Tensor]:
    """Tensors of one file, "imagebind/audio" for instance."""
    return load_file(GOLDEN / f"{file}.safetensors")


@cache
def facts(file: str) -> dict[str, Any]:
    """Contents of one of the JSON files."""
    content: dict[str, Any] = json.loads((GOLDEN / f"{file}.json").read_text(encoding="utf-8"))
    return content


def sources(file: str) -> list[str]:
    """Names of the media that a file has tensors of."""
    return sorted({key.split(".")[0] for key in tensors(file)} & set(ASSETS))


def asset(source: str, kind: str) -> bytes:
    """Bytes of a media file."""
    return (GOLDEN / "assets" / ASSETS[source][kind]).read_bytes()


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape."""
    assert a.shape == b.shape
    return float((a - b).abs().max())


def picture_difference(x: Tensor, file: str, source: str) -> float:
    """Largest difference of a picture [3, H, W] to all that is stored of it."""
    stored = tensors(file)
    worst = 0.0
    for key, expected in stored.items():
        name, _, part = key.partition(".")
        if name == source:
            worst = max(worst, difference(_part(x, part), expected))
    return worst


def _part(x: Tensor, part: str) -> Tensor:
    if part.startswith("stride"):
        step = int(part.removeprefix("stride"))
        return x[..., ::step, ::step]
    if part == "mean_std":
        return torch.stack([x.mean((-2, -1)), x.std((-2, -1))], dim=-1)
    sides = {"first_row": x[:, 0], "last_row": x[:, -1]}
    return (sides | {"first_col": x[..., 0], "last_col": x[..., -1]})[part]


def as_array(x: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """A tensor as the array that a decoder would give."""
    return x.numpy()
