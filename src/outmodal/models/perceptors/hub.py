"""Perceptors from transformers: a local folder, or a hub id where downloading is allowed.

Dual encoders (CLIP, CLAP) give their projected embedding; other models are pooled. Weights are
read from safetensors only, and code that lies beside them is never run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import Field
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

from outmodal.data.manifest import Dataset, Modality
from outmodal.errors import UserError
from outmodal.models.perceptors.base import FrozenPerceptor, PerceptorBase
from outmodal.models.perceptors.hub_inputs import HubImage, HubSound, HubText, HubTransform
from outmodal.models.perceptors.hub_towers import PROJECTIONS, HubTower, OwnLength, Pool
from outmodal.models.reading import read_part, weights_digest

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_TRAINING_ONLY = ("masked_spec_embed", "mask_token")


class HubPerceptor(PerceptorBase):
    """A transformers model as a frozen encoder.

    Attributes:
        modality: The data set's modality to encode; its kind decides which part of the model
            and of its preprocessing is used (image, audio or text).
        path: Folder with config.json, *.safetensors and the preprocessor's files, or the id of
            a model on https://huggingface.co.
        allow_download: Whether the files of an id may be fetched; files that an earlier
            download left in the local cache are used without it.
        pool: "projection" of a dual encoder, the model's "pooler", "first" token, or "mean"
            over positions. "auto": the projection if there is one, else for images the pooler
            (the first token if the checkpoint has no pooler), for text the first token, for
            audio the mean.
        seconds: Longest sound for models that read waveforms; the rest is cut off.
        tokens: Longest text in tokens; None is what model and tokenizer allow.
    """

    name: Literal["hub"] = "hub"
    modality: str
    path: str
    allow_download: bool = False
    pool: Literal["auto", "projection", "pooler", "first", "mean"] = "auto"
    seconds: float = Field(default=10.0, gt=0)
    tokens: int | None = Field(default=None, gt=0)

    def load(self, dataset: Dataset) -> FrozenPerceptor:
        spec = dataset.modality(self.modality)
        if spec.kind not in PROJECTIONS:
            raise UserError(
                f"perceptor for '{self.modality}': hub models read {', '.join(PROJECTIONS)}, "
                f"not {spec.kind}; choose another modality, or an exported perceptor"
            )
        folder = find_folder(self.path, self.allow_download)
        weights = weight_files(folder)
        model, missing = _load_model(folder, self.precision)
        pool = _choose_pool(self.pool, spec, model, missing, folder)
        transform = _transform(self, spec, model, folder)
        if pool == "pooler" and not _has_pooler(model, transform):
            pool = _without_pooler(self.pool, folder)
        tower = _tower(spec, model, transform, pool)
        identity = self._identity(folder, pool, weights_digest(weights))
        return FrozenPerceptor(
            self.modality, identity, transform, tower, self.precision, compiled=self.compile
        )

    def identities(self) -> tuple[str, ...]:
        folder = find_folder(self.path, self.allow_download)
        digest = weights_digest(weight_files(folder))
        pools = get_args(Pool) if self.pool == "auto" else (self.pool,)
        return tuple(self._identity(folder, pool, digest) for pool in pools)

    def _identity(self, folder: Path, pool: str, digest: str) -> str:
        local = Path(self.path).expanduser().is_dir()
        return f"hub:{folder.resolve().name if local else self.path}/{pool}@{digest}"

    def for_text(self, modality: str) -> HubPerceptor:
        return self.model_copy(update={"modality": modality, "pool": "projection"})


def find_folder(path: str, allow_download: bool) -> Path:
    """Return the folder of a model: `path` itself, or the local copy of a hub id.

    Raises:
        UserError: There is no such folder, and the id's files are not here and may not or
            cannot be fetched; names the file, its public home, and where to put it.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if not _ID.fullmatch(path):
        raise UserError(
            f"perceptor folder {path} does not exist: put config.json and "
            "model.safetensors there, or give the id of a model on huggingface.co"
        )
    try:
        return Path(
            snapshot_download(path, local_files_only=not allow_download, allow_patterns=_FILES)
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        why = (
            f"it could not be downloaded ({type(error).__name__})"
            if allow_download
            else ("allow_download is false")
        )
        raise UserError(
            f"perceptor '{path}': no such folder, model.safetensors of that id is not on this "
            f"machine, and {why}. Download the files of https://huggingface.co/{path} into the "
            f"folder {Path(path).absolute()} (or any other, and set the perceptor's path to it), "
            "or set allow_download to true"
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, in order; UserError if it has none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: it is no folder of a transformers model")
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return files
    if list(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} has its weights as pytorch_model.bin, a pickle, which outmodal does not "
            'read; convert it once: python -c "from transformers import AutoModel as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    raise UserError(f"{folder} has no model.safetensors: put the model's weights there")


def _load_model(folder: Path, precision: str) -> tuple[Any, list[str]]:
    """Return the model and the weights that its checkpoint lacks (training-only ones aside)."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model, info = read_part(
        AutoModel, folder, "weights", use_safetensors=True, dtype=dtype, output_loading_info=True
    )
    lacking = sorted(k for k in info["missing_keys"] if not k.endswith(_TRAINING_ONLY))
    real = [k for k in lacking if "pooler." not in k]
    if real:
        raise UserError(
            f"{folder}: model.safetensors lacks {len(real)} weights of {type(model).__name__} "
            f"({', '.join(real[:3])}, ...): the checkpoint is of another model than config.json"
        )
    return model, lacking


def _choose_pool(asked: str, spec: Modality, model: Any, missing: list[str], folder: Path) -> Pool:
    """Settle "auto", and refuse a pool that this model or checkpoint does not have."""
    projects = hasattr(model, PROJECTIONS[spec.kind])
    dual = any(hasattr(model, method) for method in PROJECTIONS.values())
    if dual and not projects:
        raise UserError(f"{folder}: {type(model).__name__} has no tower for {spec.kind}")
    if projects != (asked == "projection") and asked != "auto":
        have = "projection" if projects else "pooler, first and mean"
        raise UserError(f"{folder}: {type(model).__name__} has no pool '{asked}', but {have}")
    if asked == "pooler" and missing:
        raise UserError(
            f"{folder}: the checkpoint has no weights for the pooler ({missing[0]}): "
            "set pool to first or mean"
        )
    if asked != "auto":
        return asked  # type: ignore[return-value]
    if projects:
        return "projection"
    by_kind: dict[str, Pool] = {
        "image": "first" if missing else "pooler",
        "text": "first",
        "audio": "mean",
    }
    return by_kind[spec.kind]


def _has_pooler(model: Any, transform: HubTransform) -> bool:
    """Whether the model's output has a pooled vector; only a call can tell."""
    x = torch.zeros((1, *transform.shape), dtype=transform.dtype)
    with torch.no_grad():
        out = model.eval()(x.to(model.dtype) if x.is_floating_point() else x.clamp(min=0))
    return getattr(out, "pooler_output", None) is not None


def _without_pooler(asked: str, folder: Path) -> Pool:
    if asked == "pooler":
        raise UserError(f"{folder}: the model has no pooler: set pool to first or mean")
    return "first"


def _transform(cfg: HubPerceptor, spec: Modality, model: Any, folder: Path) -> HubTransform:
    """Wrap the preprocessing of the modality's kind."""
    if spec.kind == "image":
        config = getattr(model.config, "vision_config", model.config)
        processor = read_part(AutoImageProcessor, folder, "image preprocessor")
        return HubImage(processor, int(getattr(config, "num_channels", 3)))
    if spec.kind == "audio":
        extractor = read_part(AutoFeatureExtractor, folder, "audio preprocessor")
        stored = spec.sample_rate or int(extractor.sampling_rate)
        return HubSound(extractor, stored, cfg.seconds, _shortest(model.config))
    tokenizer = read_part(AutoTokenizer, folder, "tokenizer")
    return HubText(tokenizer, cfg.tokens or _context(tokenizer, model.config))


def _shortest(config: Any) -> int:
    """Samples that a stack of convolutions (wav2vec2 and its kin) needs to give one frame."""
    needed = 1
    kernels, strides = getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ())
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        needed = (needed - 1) * stride + kernel
    return needed


def _context(tokenizer: Any, config: Any) -> int:
    """Longest text in tokens. RoBERTa counts two more positions than it has; we allow for it."""
    limit = int(tokenizer.model_max_length)
    text = getattr(config, "text_config", config)
    positions = int(getattr(text, "max_position_embeddings", 512))
    return limit if limit < 100_000 else positions - 2


def _tower(spec: Modality, model: Any, transform: HubTransform, pool: Pool) -> torch.nn.Module:
    """Join model and pool; inputs of varying length run at their own."""
    argument = {"image": "pixel_values", "text": "input_ids"}.get(spec.kind, "")
    extra: dict[str, Any] = {}
    if isinstance(transform, HubSound):
        argument = transform.name
        if "is_longer" in transform.processor.model_input_names:
            extra["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)
    tower = HubTower(model, argument, pool, PROJECTIONS[spec.kind], extra)
    varying = isinstance(transform, HubText) or getattr(transform, "is_wave", False)
    return OwnLength(tower) if varying else tower
