"""An export on disk: its record `outmodal.json`, and reading one back.

config.json, model.safetensors    the backbone, for transformers.AutoModel
preprocessor_config.json or tokenizer.json
head.safetensors                  representation -> embedding, where there is a head
classifier.safetensors            normalised embedding -> logits, where there is a classifier
check.safetensors                 a few inputs and what they must give
model.onnx, model.pt2             the encoder as a graph, where they were asked for
training.yaml                     the run's configuration, to repeat it
outmodal.json                     everything else, and the sha256 of the files above
README.md                         the model card
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel

from outmodal.base import Config
from outmodal.data.inputs import InputConfig
from outmodal.data.manifest import Dataset, Kind
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from outmodal.models.features import FeatureNorm, feature_norm
from outmodal.models.heads import Kind as HeadKind
from outmodal.models.heads import ProjectionHead
from outmodal.models.learners import Learner, LearnerConfig, Pool, build_learner
from outmodal.models.reading import read_part, sha256_file

RECORD = "outmodal.json"
TRAINING = "training.yaml"
FORMAT = 1
WEIGHTS, HEAD, CLASSIFIER, CHECK = (
    f"{name}.safetensors" for name in ("model", "head", "classifier", "check")
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ForwardInfo(Config):
    """How transformers' model is called.

    Attributes:
        argument: Name of its input.
        pad_token: Token that marks padding: attention_mask is 0 there (but for the first
            position). None for models without a mask.
    """

    argument: str
    pad_token: int | None = None


class HeadInfo(Config):
    """Sizes of the projection head, enough to make it again."""

    kind: HeadKind
    dim: int
    hidden: int


class ExportInfo(Config):
    """The contents of `outmodal.json`.

    Attributes:
        name: Name of the encoder, part of a perceptor's identity.
        modality, kind: What it reads, as the training data named it.
        pool: How the backbone's output becomes the representation.
        repr_dim, embed_dim: Sizes of representation and embedding (equal without a head).
        forward: How transformers' model is called; None where transformers does not have the
            architecture and only outmodal loads it.
        head: The projection; None where the embedding is the representation.
        classifier_norm: How the embedding is normalised before the classifier; None without one.
        input: From a decoded value to the input, with everything resolved.
        learner: The learner's configuration.
        classes: Class names in the order of the logits.
        files: File name -> sha256.
    """

    format: Literal[1] = 1
    name: str
    modality: str
    kind: Kind
    pool: Pool
    repr_dim: int
    embed_dim: int
    forward: ForwardInfo | None
    head: HeadInfo | None
    classifier_norm: FeatureNorm | None
    input: InputConfig
    learner: LearnerConfig
    classes: tuple[str, ...]
    files: dict[str, str]

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if not _NAME.fullmatch(name):
                raise ValueError(f"'{name}' is not the plain name of a file in the folder")
        return files


@dataclass(frozen=True)
class Export:
    """An encoder read back from its folder, on the CPU in eval mode.

    Attributes:
        folder: Where it lies.
        info: Its record.
        learner: x -> r.
        head: r -> e, or None.
        classifier: norm(e) -> logits, or None.
    """

    folder: Path
    info: ExportInfo
    learner: Learner
    head: ProjectionHead | None
    classifier: nn.Linear | None

    def transform(self, dataset: Dataset | None = None, modality: str | None = None) -> Transform:
        """Make its transform, for a data set's modality (by default the export's own name)."""
        return self.info.input.build(dataset, modality or self.info.modality, self.folder)

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return "repr" [B, d_r], "embedding" [B, d] and, with a classifier, "logits" [B, C]."""
        return outputs(
            self.learner, self.head, self.classifier, self.info.classifier_norm or "none", x
        )


def outputs(
    learner: nn.Module,
    head: nn.Module | None,
    classifier: nn.Module | None,
    norm: FeatureNorm,
    x: Tensor,
) -> dict[str, Tensor]:
    """Everything that an exported encoder says of inputs x [B, ...], without gradients."""
    with torch.no_grad():
        r = learner(x)
        e = r if head is None else head(r)
        found = {"repr": r, "embedding": e}
        if classifier is not None:
            found["logits"] = classifier(feature_norm(e, norm))
    return found


def read_info(folder: Path) -> ExportInfo:
    """Read `folder/outmodal.json`; UserError if it is missing, damaged or of another format."""
    file = folder / RECORD
    if not file.is_file():
        raise UserError(
            f"{folder} has no {RECORD}: it is no export of outmodal; make one with `outmodal "
            "export RUN --to DIR`, or use a transformers folder as a perceptor named 'hub'"
        )
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): export the run again") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT or isinstance(found, bool):
        raise UserError(
            f"{file}: format: expected {FORMAT}, got {found!r}: update outmodal, or export the "
            "run again with this version"
        )
    try:
        return ExportInfo.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file}: {place}: {first['msg']}: export the run again") from None


def verify_files(folder: Path, info: ExportInfo) -> None:
    """Compare every recorded file with its sha256; UserError names the first that differs."""
    for name, expected in info.files.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{folder} has no {name}: put the file back, or export the run again")
        if sha256_file(file) != expected:
            raise UserError(
                f"{file} is not the file that was exported (its sha256 differs from "
                f"{RECORD}): restore it, or export the run again"
            )


def load_export(folder: Path) -> Export:
    """Read an export: safetensors only, every file verified.

    Raises:
        UserError: No such folder, no weights, another format, or a file that was changed.
    """
    if not folder.is_dir():
        raise UserError(f"there is no export at {folder}: give the folder of `outmodal export`")
    info = read_info(folder)
    weights = [name for name in info.files if is_weights(name)]
    if not any((folder / name).is_file() for name in weights):
        raise UserError(
            f"{folder} has no {WEIGHTS}: put the encoder's weights there, or export the run again"
        )
    verify_files(folder, info)
    with torch.random.fork_rng(devices=[]):  # modules draw weights when they are made
        return _read_modules(folder, info)


def is_weights(name: str) -> bool:
    """Whether a file of an export holds weights of its backbone; large ones come in several."""
    return name.startswith("model") and name.endswith(".safetensors")


def _read_modules(folder: Path, info: ExportInfo) -> Export:
    head = None
    if info.head is not None:
        head = ProjectionHead(info.repr_dim, info.head.dim, info.head.kind, info.head.hidden)
        _fill(head, folder / HEAD)
    classifier = None
    if info.classifier_norm is not None:
        classifier = nn.Linear(info.embed_dim, len(info.classes))
        _fill(classifier, folder / CLASSIFIER)
    return Export(folder, info, _load_learner(folder, info), head, classifier)


def _load_learner(folder: Path, info: ExportInfo) -> Learner:
    """Make the learner around the stored backbone."""
    learner = build_learner(info.learner)
    if info.forward is None:
        _fill(learner.backbone, folder / WEIGHTS)
    else:
        learner.backbone = _load_backbone(folder)
    return learner.eval().requires_grad_(False)


def _load_backbone(folder: Path) -> nn.Module:
    """Read the backbone as anybody would, by AutoModel; only an unused pooler may be missing."""
    backbone, report = read_part(
        AutoModel,
        folder,
        "weights",
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    lacking = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    if lacking:
        raise UserError(f"{folder / WEIGHTS} lacks {lacking[0]}: export the run again")
    module: nn.Module = backbone
    return module


def _fill(module: nn.Module, file: Path) -> None:
    """Load a module's weights, strictly."""
    try:
        module.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError, OSError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{file} cannot be read: {line}: export the run again") from None
    module.eval().requires_grad_(False)


def as_json(info: ExportInfo) -> bytes:
    """The bytes of `outmodal.json`."""
    content: dict[str, Any] = info.model_dump(mode="json")
    return (json.dumps(content, indent=2) + "\n").encode()
