"""What judges frozen encoders: a classifier that was trained with them, or a probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from outmodal.errors import UserError
from outmodal.train.methods.fusion import Fusion
from outmodal.train.representations import Encoder
from outmodal.train.sources import RunSource

Judge = Literal["auto", "classifier", "probe"]
"""classifier: what was trained with the encoder, or class names; probe: one that learns on the
clean training split; auto: the classifier where there is one."""

FusedClassifier = Callable[[Mapping[str, Tensor]], Tensor]
"""modality -> r [n, d_r] of all modalities, to logits [n, C]."""


def fused_classifier(encoder: Encoder, judge: Judge) -> FusedClassifier | None:
    """The classifier of all modalities together that `judge` asks for; None for a probe.

    Raises:
        UserError: One is asked for by name, and there is none, or none of the data set's classes.
    """
    source = encoder.source
    method = source.method if isinstance(source, RunSource) else None
    if judge == "probe":
        return None
    if not isinstance(method, Fusion) or method.metric != "top1":
        if judge == "auto":
            return None
        raise UserError(
            f"{source.name} has no classifier of all its modalities: leave --judge out, or name a "
            "run of a method that fuses them by classes, such as ume_mma"
        )
    given, known = encoder.dataset.manifest.classes, method.context.classes
    if given == known:
        return method.fused
    if judge == "auto":
        return None
    raise UserError(
        f"data set '{encoder.dataset.manifest.name}' has the classes {', '.join(given)}, and "
        f"{source.name} was trained on {', '.join(known)}: evaluate on a data set with the same "
        "classes, or with --judge probe"
    )
