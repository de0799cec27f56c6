"""What COX is made of before the first step: known modalities, known samples, the learner's start,
and the data sets that it refuses."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from outmodal.errors import UserError, nearest
from outmodal.models.export_folder import load_export
from outmodal.models.heads import ProjectionHead, init_linear
from outmodal.models.learners import Learner
from outmodal.train.methods.base import Context
from outmodal.train.methods.cox_config import CoxConfig, OomInit
from outmodal.train.selection import labelled_draw, mix_seeds

log = logging.getLogger(__name__)

_RENEWED_SALT = 0xA11  # keeps renewed layers apart from those that the seed gives a new model
_INWARD = frozenset(
    f"{name}{end}"
    for name in ("query", "key", "value", "q", "k", "v", "qkv")
    for end in ("", "_proj")
)
"""What transformers call the layers that project into attention."""


def known_modalities(context: Context, config: CoxConfig) -> tuple[str, ...]:
    """Names of the known modalities.

    Raises:
        UserError: None, the unknown one among them, or one that is no vector of the data set.
    """
    known = config.known or tuple(m for m in context.dims if m != config.unknown)
    if config.unknown in known:
        raise UserError(
            f"method.known holds '{config.unknown}', which is method.unknown: name other modalities"
        )
    if len(set(known)) < len(known):
        raise UserError(f"method.known names a modality twice: {', '.join(known)}")
    for m in known:
        if m not in context.dims:
            raise UserError(
                f"method.known names '{m}', which is no vector modality of the data set"
                f"{nearest(m, context.dims)}; `outmodal embed` computes features of other kinds"
            )
    if not known:
        raise UserError(
            "method cox needs known features, but the data set has no vector modality: compute "
            "them with `outmodal embed`, or configure perceptors"
        )
    return known


def check_classes(context: Context) -> None:
    """Raises UserError where there is one class only: heads could not disagree."""
    if len(context.classes) < 2:
        held = ", ".join(repr(c) for c in context.classes) or "none"
        raise UserError(
            f"method cox needs two classes or more, but the data set has {held}: its heads could "
            "never disagree; use a data set with other classes beside it"
        )


def known_rows(context: Context, fraction: float) -> NDArray[np.int64] | None:
    """Sorted indices of the training samples whose known features are used; None is all."""
    if fraction == 1.0:
        return None
    labels = context.labels[context.train_split]
    # by the very seed of the labelled draw: a share that is no smaller holds the labelled pairs
    return labelled_draw(labels, fraction, context.seed, context.classes)


def anchor_count(fraction: float, samples: int) -> int:
    """T and S, a share of the training split.

    Raises:
        UserError: The share gives none.
    """
    count = round(fraction * samples)
    if count < 1:
        raise UserError(
            f"method.select_fraction {fraction} of {samples} training samples gives no anchor: "
            "raise it, or use a larger data set"
        )
    return count


def initialise(
    learner: Learner,
    projection: ProjectionHead,
    classifier: nn.Linear,
    how: OomInit,
    weights: str | None,
    seed: int,
) -> None:
    """Start the learner (C17): as it is, or from an export. With "perceptor_partial" linear layers
    and layer norms are drawn anew, as the released code does with the perceptor's tower: what
    projects into attention stays, as there it is no such layer. "perceptor" keeps everything, and
    the export's projection.

    Args:
        learner: The learner with new weights.
        projection, classifier: What is behind it, drawn anew too where it is not kept. The run that
            made the export may have had the same seed, and then began with the very layers that
            this run has: what the export kept would fit them, and its labels would leak.
        how, weights: `oom_init` and `oom_weights`.
        seed: Of the run.

    Raises:
        UserError: No folder, or an export of another learner or into another space.
    """
    if how == "scratch":
        if weights:
            raise UserError(
                f"method.oom_weights is '{weights}' but method.oom_init is scratch: set it to "
                "perceptor_partial or perceptor, or leave oom_weights out"
            )
        return
    if not weights:
        raise UserError(
            f"method.oom_init {how} needs method.oom_weights, the folder of an export of the same "
            "learner (`outmodal export RUN --modality NAME --to FOLDER`)"
        )
    export = load_export(Path(weights).expanduser())
    _copy(learner, export.learner, weights)
    renewed: list[nn.Parameter] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seeds(seed, _RENEWED_SALT))
        if how == "perceptor_partial":
            renewed = _renewed(learner)
            init_linear(_linear(projection))
        init_linear(classifier)
    if how == "perceptor":
        _copy_projection(projection, export.head, weights)
    total = sum(p.numel() for p in learner.parameters())
    log.warning(
        "method.oom_init %s: %d of the learner's %d weights%s are those of %s, which may have seen "
        "labels or pairs: results show that leak, and are not unsupervised",
        how,
        total - sum(p.numel() for p in renewed),
        total,
        " and its projection" if how == "perceptor" else "",
        weights,
    )


def _renewed(learner: Learner) -> list[nn.Parameter]:
    """Draw linear layers and layer norms anew, but for what projects into attention; returns their
    parameters, each once."""
    found: dict[int, nn.Parameter] = {}
    for name, module in learner.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm) and name.split(".")[-1] not in _INWARD:
            module.reset_parameters()
            found |= {id(p): p for p in module.parameters(recurse=False)}
    return list(found.values())


def _linear(projection: ProjectionHead) -> nn.Linear:
    layer = projection.layers[0]
    assert isinstance(layer, nn.Linear)
    return layer


def _copy_projection(own: ProjectionHead, other: ProjectionHead | None, folder: str) -> None:
    if other is None:
        raise UserError(
            f"method.oom_weights {folder} has no projection to keep: export a run of method align, "
            "or set method.oom_init perceptor_partial"
        )
    if other.kind != own.kind:
        raise UserError(
            f"method.oom_weights {folder}: its projection is '{other.kind}', and the learner has a "
            f"{own.kind} one: train the export with method.head.kind {own.kind}"
        )
    if other.dim != own.dim:
        raise UserError(
            f"method.oom_weights {folder} projects to {other.dim} numbers, and z has {own.dim}: "
            f"set method.dim {other.dim}, and name known features of its space in method.known"
        )
    own.load_state_dict(other.state_dict())


def _copy(learner: Learner, source: Learner, folder: str) -> None:
    own, other = learner.state_dict(), source.state_dict()
    wrong = sorted(
        k
        for k in own.keys() | other.keys()
        if k not in own or k not in other or own[k].shape != other[k].shape
    )
    if wrong:
        raise UserError(
            f"method.oom_weights {folder} holds another learner than the one of "
            f"'{learner.modality}': {len(wrong)} tensors differ, '{wrong[0]}' for one; export a "
            "run with the same learner"
        )
    learner.load_state_dict(other)
