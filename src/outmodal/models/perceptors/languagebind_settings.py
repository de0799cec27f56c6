"""LanguageBind's config.json: the fields that decide the towers, with upstream's defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from outmodal.base import Config
from outmodal.errors import UserError
from outmodal.models.perceptors.towers import ACTIVATIONS

CONFIG = "config.json"
_MOVABLE = ("clip_type", "tube_size")
"""Fields of V1.5 that a file may hold beside `vision_config` instead of inside it."""


class _Fields(Config):
    """Some fields of a file that holds many more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SideSettings(_Fields):
    """What both sides' transformers have. Class defaults are upstream's, not the released files'.

    Attributes:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: Of the transformer.
        hidden_act: Activation of the MLP.
        layer_norm_eps: Of every norm.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 12
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @field_validator("hidden_act")
    @classmethod
    def _known_activation(cls, name: str) -> str:
        if name not in ACTIVATIONS:
            raise ValueError(f"must be {' or '.join(ACTIVATIONS)}")
        return name


class TextSettings(SideSettings):
    """`text_config`: vocabulary and context beside the transformer."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77


class VisionSettings(SideSettings):
    """`vision_config`.

    Attributes:
        add_time_attn: Whether every layer begins with attention over frames.
        num_frames: Frames of a clip.
        clip_type: "vl_new" has a class embedding for each frame and patches with a time axis
            (V1.5); None leaves it to the checkpoint's shapes.
        tube_size: Frames that a patch covers; upstream works for 1 only.
        lora_r, lora_alpha: Rank and weight of the adapters, if the checkpoint has any.
        num_mel_bins, target_length: Height and width of a spectrogram; 0 for square pictures.
        max_depth: Metres that depth is divided by; 0 is the picture's own largest.
        audio_sample_rate, audio_mean, audio_std: How spectrograms are made.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    add_time_attn: bool = False
    num_frames: int = Field(default=1, ge=1)
    clip_type: str | None = None
    tube_size: Literal[1] = 1
    lora_r: int = 2
    lora_alpha: float = 16
    num_mel_bins: int = 0
    target_length: int = 0
    max_depth: float = 10
    audio_sample_rate: int = 16000
    audio_mean: float = 0.5
    audio_std: float = 0.5

    @property
    def input(self) -> tuple[int, ...]:
        """Shape of one input: (channels, [frames,] height, width)."""
        side = (self.image_size, self.image_size)
        plane = (self.num_mel_bins, self.target_length) if self.num_mel_bins else side
        frames = (self.num_frames,) if self.add_time_attn else ()
        return (self.num_channels, *frames, *plane)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.input[-2:]
        return height // self.patch_size, width // self.patch_size

    @property
    def own_class_rows(self) -> bool:
        """Whether each frame has a class embedding of its own."""
        return self.clip_type == "vl_new"


class LanguageBindSettings(_Fields):
    """What a checkpoint's folder says about its two towers.

    Attributes:
        model_type: "LanguageBindImage", "LanguageBindVideo" and so on.
        projection_dim: Size of the shared embedding; the nested fields of this name mislead.
    """

    model_type: str
    projection_dim: int = 512
    text_config: TextSettings
    vision_config: VisionSettings


def read_settings(folder: Path) -> LanguageBindSettings:
    """Read config.json. Raises UserError that names the file and the field."""
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return LanguageBindSettings.model_validate(_arranged(content))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {CONFIG}: put the checkpoint's own beside its weights"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "it"
        raise UserError(
            f"{path}: {field}: {first['msg']}; this is not a LanguageBind checkpoint that "
            "outmodal reads: fetch the file again"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch the file again") from None


def _arranged(content: Any) -> Any:
    """Leave out fields that are null, and bring those of V1.5 to where they belong."""
    if not isinstance(content, dict):
        return content
    kept = {name: _without_null(value) for name, value in content.items()}
    vision = kept.get("vision_config")
    if isinstance(vision, dict):
        moved = {name: kept[name] for name in _MOVABLE if kept.get(name) is not None}
        kept["vision_config"] = {**moved, **vision}
    return kept


def _without_null(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: item for name, item in value.items() if item is not None}
