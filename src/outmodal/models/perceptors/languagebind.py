"""LanguageBind as a perceptor: one side of a released checkpoint, and the input it was fed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from outmodal.data.manifest import Dataset
from outmodal.data.perceptor_inputs import perceptor_input
from outmodal.errors import UserError
from outmodal.models.perceptors.adapters import Adapters, find_adapters
from outmodal.models.perceptors.base import FrozenPerceptor, PerceptorBase
from outmodal.models.perceptors.checkpoint import Checkpoint, compare, fill
from outmodal.models.perceptors.languagebind_settings import (
    LanguageBindSettings,
    VisionSettings,
    read_settings,
)
from outmodal.models.perceptors.languagebind_towers import PROJECTIONS, LanguageBindTower
from outmodal.models.perceptors.weights import Home, find_weights

log = logging.getLogger(__name__)

HOME = Home(
    what="LanguageBind",
    files="config.json and the weights (LanguageBind_Image, _Video_FT, _Audio_FT, _Depth, ...)",
    page="https://huggingface.co/LanguageBind",
    licence="MIT",
    patterns=("model*.safetensors", "pytorch_model*.bin"),
)

READS = {
    "LanguageBindImage": ("image", "image"),
    "LanguageBindVideo": ("video", "video"),
    "LanguageBindAudio": ("audio", "audio"),
    "LanguageBindDepth": ("image", "depth"),
    "LanguageBindThermal": ("image", "thermal"),
}
"""`model_type` -> (kind of modality that the vision side reads, its input)."""

_CLASS_EMBEDDING = "vision_model.embeddings.class_embedding"
_POSITION_IDS = ".position_ids"


class LanguageBindPerceptor(PerceptorBase):
    """One side of a LanguageBind checkpoint as a frozen encoder.

    Attributes:
        modality: The data set's modality to encode: text goes through the checkpoint's language
            side, and the kind that its other side was trained for through that.
        path: Folder with config.json and the weights, or the checkpoint's hub id.
        allow_download: Whether the files of an id may be fetched.
        input: Settings of the side's input to change, such as `antialias`.
    """

    name: Literal["languagebind"] = "languagebind"
    modality: str
    path: str
    allow_download: bool = False
    input: dict[str, Any] = Field(default_factory=dict)

    def load(self, dataset: Dataset) -> FrozenPerceptor:
        spec = dataset.modality(self.modality)
        checkpoint = Checkpoint(find_weights(self.path, HOME, self.allow_download))
        settings = settle(read_settings(checkpoint.files[0].parent), checkpoint)
        side, source = _choose(settings, self.modality, spec.kind, checkpoint)
        changed = {**_constants(settings, source), **self.input}
        transform = perceptor_input("languagebind", source, **changed).build(
            dataset, self.modality, None
        )
        _check_shape(transform.shape, settings, side)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        module = load_tower(checkpoint, settings, side, dtype)
        identity = _identity(settings, side, checkpoint)
        return FrozenPerceptor(
            self.modality,
            identity,
            transform,
            module,
            self.precision,
            dim=settings.projection_dim,
            compiled=self.compile,
        )

    def identities(self) -> tuple[str, ...]:
        checkpoint = Checkpoint(find_weights(self.path, HOME, self.allow_download))
        settings = read_settings(checkpoint.files[0].parent)
        return tuple(_identity(settings, side, checkpoint) for side in PROJECTIONS)

    def for_text(self, modality: str) -> LanguageBindPerceptor:
        return self.model_copy(update={"modality": modality, "input": {}})


def _identity(settings: LanguageBindSettings, side: str, checkpoint: Checkpoint) -> str:
    return f"languagebind:{settings.model_type}/{side}@{checkpoint.digest}"


def _choose(
    settings: LanguageBindSettings, modality: str, kind: str, checkpoint: Checkpoint
) -> tuple[str, str]:
    """Return (side, kind of its input) for a modality, or raise UserError."""
    if settings.model_type not in READS:
        raise UserError(
            f"{checkpoint.label}: config.json says model_type '{settings.model_type}', and "
            f"LanguageBind's are {', '.join(READS)}: read other models with perceptor name: hub"
        )
    own, source = READS[settings.model_type]
    if kind not in (own, "text"):
        raise UserError(
            f"{settings.model_type} of {checkpoint.label} reads {own} and text, and modality "
            f"'{modality}' is {kind}: choose the checkpoint for that"
        )
    return ("text", "text") if kind == "text" else ("vision", source)


def _constants(settings: LanguageBindSettings, source: str) -> dict[str, Any]:
    """Settings of an input that the checkpoint's config decides."""
    v, t = settings.vision_config, settings.text_config
    by_source: dict[str, dict[str, Any]] = {
        "video": {"size": v.image_size, "frames": v.num_frames},
        "audio": {
            "mels": v.num_mel_bins,
            "frames": v.target_length,
            "mean": v.audio_mean,
            "std": 2 * v.audio_std,
        },
        "depth": {"size": v.image_size, "farthest": v.max_depth},
        "text": {"context": t.max_position_embeddings},
    }
    return by_source.get(source, {"size": v.image_size})


def _check_shape(got: tuple[int, ...], settings: LanguageBindSettings, side: str) -> None:
    """Refuse input settings that the positions are not made for."""
    text = (settings.text_config.max_position_embeddings,)
    wanted = text if side == "text" else settings.vision_config.input
    if got != wanted:
        raise UserError(
            f"{settings.model_type} reads inputs of shape {list(wanted)}, and the perceptor's "
            f"input settings give {list(got)}: leave size, frames and context alone"
        )


def settle(settings: LanguageBindSettings, checkpoint: Checkpoint) -> LanguageBindSettings:
    """Take from the shapes what the config leaves open: whether it is of generation V1.5."""
    shape = checkpoint.shapes.get(_CLASS_EMBEDDING, torch.Size())
    if settings.vision_config.clip_type is not None or len(shape) < 2:
        return settings
    vision = settings.vision_config.model_copy(update={"clip_type": "vl_new"})
    return settings.model_copy(update={"vision_config": vision})


def load_tower(
    checkpoint: Checkpoint, settings: LanguageBindSettings, side: str, dtype: torch.dtype
) -> LanguageBindTower:
    """Read one side ("vision" or "text"), adapters folded in.

    Every key must be of one of the sides, and none may lack; `position_ids`, which some releases
    of transformers stored and others do not, are passed over.

    Raises:
        UserError: Keys, shapes or adapters are not those of `settings`.
    """
    vision = settings.vision_config
    names = [name for name in checkpoint.shapes if not name.endswith(_POSITION_IDS)]
    targets = adapter_targets(vision)
    adapters = find_adapters(checkpoint, names, targets, vision.lora_r, vision.lora_alpha)
    what = f"{settings.model_type} as config.json describes it"
    compare(adapters.shapes, expected_shapes(settings), checkpoint.label, what)
    with torch.device("meta"):
        module = LanguageBindTower(settings, side)
    fill(module, checkpoint, adapters.keys, dtype, adapters.fold)
    _report(checkpoint, settings, adapters, module, len(names))
    return module.eval()


def expected_shapes(settings: LanguageBindSettings) -> dict[str, torch.Size]:
    """Key -> shape of a checkpoint without adapters; nothing of that size is allocated."""
    with torch.device("meta"):
        sides = [LanguageBindTower(settings, side).state_dict() for side in PROJECTIONS]
    return {name: tensor.shape for side in sides for name, tensor in side.items()}


def adapter_targets(vision: VisionSettings) -> list[str]:
    """Weights that adapters sit on, in checkpoints that have any."""
    attention = "temporal_attn" if vision.add_time_attn else "self_attn"
    return [
        f"vision_model.encoder.layers.{layer}.{attention}.{part}_proj.weight"
        for layer in range(vision.num_hidden_layers)
        for part in ("q", "k", "v", "out")
    ]


def _report(
    checkpoint: Checkpoint,
    settings: LanguageBindSettings,
    adapters: Adapters,
    module: LanguageBindTower,
    used: int,
) -> None:
    """Log what distinguishes this file from others of its family."""
    v = settings.vision_config
    log.info(
        "%s: sha256 %s..., %d files of %s, %d keys used, position_ids %s, %s, %s side; %s, norm "
        "epsilon %g, clip_type %s, %d frames, grid %s; adapters of rank %d (layout %s), times %g; "
        "upstream's scale %g",
        checkpoint.label,
        checkpoint.digest,
        len(checkpoint.files),
        Path(checkpoint.files[0]).suffix,
        used,
        "dropped" if used < len(checkpoint.shapes) else "absent",
        settings.model_type,
        module.side,
        v.hidden_act,
        v.layer_norm_eps,
        v.clip_type,
        v.num_frames,
        "x".join(str(n) for n in v.grid),
        adapters.rank,
        adapters.layout,
        adapters.scale,
        float(module.logit_scale.detach().float().exp()),
    )
