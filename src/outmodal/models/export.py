"""Writing an export: a folder that `transformers.AutoModel` loads without outmodal."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from outmodal.data.transform import Transform, Value, write_json
from outmodal.models.card import CardInfo, render_card
from outmodal.models.export_folder import (
    CHECK,
    CLASSIFIER,
    HEAD,
    RECORD,
    TRAINING,
    WEIGHTS,
    Export,
    ExportInfo,
    ForwardInfo,
    HeadInfo,
    as_json,
    load_export,
    outputs,
    read_info,
    verify_files,
)
from outmodal.models.export_place import clear_leftovers, publish, refuse_taken, staging, writing
from outmodal.models.features import FeatureNorm, unit_norm
from outmodal.models.graph import GraphKind, write_graph
from outmodal.models.graph_onnx import require_onnx
from outmodal.models.heads import ProjectionHead
from outmodal.models.learners import Learner
from outmodal.models.reading import quiet_transformers, sha256_file

TOLERANCE = 1e-5
"""Largest difference between an export and the encoder that it was made of."""

M = TypeVar("M", bound=nn.Module)

_CARD = "README.md"
_PAD = 0


def export_encoder(
    learner: Learner,
    transform: Transform,
    out: Path,
    *,
    head: ProjectionHead | None,
    classifier: nn.Linear | None,
    classes: Sequence[str],
    card: CardInfo,
    sample_inputs: Tensor,
    feature_norm: FeatureNorm | None = None,
    own: Mapping[str, Tensor] | None = None,
    graphs: Sequence[GraphKind] = (),
    force: bool = False,
) -> Path:
    """Write the encoder to the new folder `out`, read it back, and compare.

    Weights are stored in fp32. Nothing appears at `out` before the comparisons have passed.

    Args:
        learner: x -> r.
        transform: From a decoded value to x.
        out: Folder to make.
        head: r -> e; None where the embedding is the representation.
        classifier: normalised e -> logits.
        classes: Class names in the order of the logits.
        card: What the model card says.
        sample_inputs: [n, ...] inputs whose outputs are stored, and compared with the reloaded
            encoder's.
        feature_norm: How e is normalised before the classifier; must be given with one, and
            means nothing without.
        own: What the run itself gives for the inputs, under "repr", "embedding" or "logits"; the
            reloaded encoder must give the same.
        graphs: Graphs to write beside the weights, see `models.graph`.
        force: Replace an export that lies at `out`.

    Returns:
        `out`.

    Raises:
        UserError: `out` is there already, or cannot be written; a graph cannot be made.
        RuntimeError: The reloaded encoder or a graph differs, or gives values that are not finite.
    """
    if classifier is None:
        feature_norm = None
    elif feature_norm is None:
        raise ValueError("a classifier needs feature_norm: how the embedding is normalised for it")
    if "onnx" in graphs:
        require_onnx()
    clear_leftovers(out)
    refuse_taken(out, force)
    learner = _frozen(learner)
    head = None if head is None else _frozen(head)
    classifier = None if classifier is None else _frozen(classifier)
    x = sample_inputs.detach().cpu()
    expected = outputs(learner, head, classifier, feature_norm or "none", x)
    info = _describe(learner, transform, head, classes, card, feature_norm)
    with writing(out), staging(out) as folder:
        _write_weights(learner, head, classifier, folder)
        transform.save(folder)
        if card.recipe:
            (folder / TRAINING).write_text(card.recipe, encoding="utf-8")
        stored = {"inputs": x, **expected, "embedding_unit": unit_norm(expected["embedding"])}
        _save_tensors(stored, folder / CHECK)
        _write_record(folder, info)
        export = load_export(folder)
        _verify(export, transform, x, (expected, own or {}))
        for kind in graphs:
            write_graph(kind, export, x, folder)
        (folder / RECORD).unlink()  # it must not list itself
        info = _write_record(folder, info)
        (folder / _CARD).write_text(render_card(card, info), encoding="utf-8")
        verify_files(folder, read_info(folder))
        publish(folder, out)
    return out


def _write_record(folder: Path, info: ExportInfo) -> ExportInfo:
    """Write outmodal.json with the checksums of all files that are there; return what it says."""
    complete = info.model_copy(update={"files": _checksums(folder)})
    (folder / RECORD).write_bytes(as_json(complete))
    return complete


def _frozen(module: M) -> M:
    """A copy on the CPU in fp32 and eval mode; the trained module is left as it is."""
    return copy.deepcopy(module).cpu().float().eval()


def _describe(
    learner: Learner,
    transform: Transform,
    head: ProjectionHead | None,
    classes: Sequence[str],
    card: CardInfo,
    norm: FeatureNorm | None,
) -> ExportInfo:
    """The record, its files aside. Paths of the training machine are left out."""
    resolved = transform.config.plain().model_dump(mode="json")
    if "tokenizer" in resolved:
        resolved["tokenizer"] = None  # the export holds the tokenizer itself
    forward = None
    if learner.in_transformers:
        argument = str(learner.backbone.main_input_name)
        forward = ForwardInfo(
            argument=argument, pad_token=_PAD if argument == "input_ids" else None
        )
    return ExportInfo.model_validate(
        {
            "name": card.name,
            "modality": learner.modality,
            "kind": transform.config.kinds[0],
            "pool": learner.pool,
            "repr_dim": learner.dim,
            "embed_dim": learner.dim if head is None else head.dim,
            "forward": forward,
            "head": head and HeadInfo(kind=head.kind, dim=head.dim, hidden=head.hidden),
            "classifier_norm": norm,
            "input": resolved,
            "learner": learner.config.model_dump(mode="json") | {"input": resolved},
            "classes": tuple(classes),
            "files": {},
        }
    )


def _write_weights(
    learner: Learner, head: nn.Module | None, classifier: nn.Module | None, folder: Path
) -> None:
    if learner.in_transformers:
        with quiet_transformers():
            learner.backbone.save_pretrained(folder)  # type: ignore[operator]
    else:
        name = getattr(learner.config, "name", "learner")
        write_json(folder / "config.json", {"model_type": f"outmodal-{name}"})
        _save_tensors(learner.backbone.state_dict(), folder / WEIGHTS)
    for module, file in ((head, HEAD), (classifier, CLASSIFIER)):
        if module is not None:
            _save_tensors(module.state_dict(), folder / file)


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(
        {name: t.detach().contiguous().clone() for name, t in tensors.items()},
        file,
        metadata={"format": "pt"},
    )


def _checksums(folder: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in sorted(folder.iterdir())}


def _verify(
    export: Export, transform: Transform, x: Tensor, sides: Sequence[Mapping[str, Tensor]]
) -> None:
    """Raise RuntimeError unless the reloaded encoder and transform are those that were given."""
    found = export.outputs(x)
    for name, value in [pair for expected in sides for pair in expected.items()]:
        difference = float((found[name] - value).abs().max())
        if not difference <= TOLERANCE:  # also where it is NaN
            raise RuntimeError(
                f"the reloaded encoder's {name} differs by {difference:g} (at most {TOLERANCE:g} "
                "is allowed): the weights hold values that are not finite, or the backbone keeps "
                "state that is not in its weights"
            )
    again = export.transform()
    if again.shape != transform.shape or not _same_on_probe(again, transform, export.info.kind):
        raise RuntimeError(f"the reloaded {type(transform).__name__} prepares inputs differently")


def _same_on_probe(one: Transform, two: Transform, kind: str) -> bool:
    """Compare on a value of the kind. Noise is passed over: its babble needs the data set."""
    if getattr(two.config, "noise", None) is not None:
        return True
    value = _probe(kind, two.shape, getattr(two.config, "channels", 1))
    return torch.equal(one(value, "probe"), two(value, "probe"))


def _probe(kind: str, shape: tuple[int, ...], channels: int) -> Value:
    """A value as a decoder of this kind gives it, for an input of `shape`."""
    if kind == "text":
        return "The quick brown fox jumps over 13 lazy dogs."
    rng = np.random.default_rng(0)
    if kind == "image":
        return rng.integers(0, 256, (*shape[1:], shape[0]), dtype=np.uint8)
    if kind == "video":
        return rng.integers(0, 256, (shape[-4], *shape[-2:], shape[-3]), dtype=np.uint8)
    sound = (4000,) if channels == 1 else (channels, 4000)
    size = sound if kind == "audio" else shape
    return rng.standard_normal(size, dtype=np.float32)
