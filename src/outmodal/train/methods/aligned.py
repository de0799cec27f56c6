"""Aligned: a pretrained encoder of the unknown modality, zero-shot by prompts: the ceiling of COX's
tables, which knows from pairs what the other methods have to find.

The modality is read as vectors in the space of a text encoder: features that `outmodal embed` made,
or a perceptor of the recipe. A sample's class is the one whose prompts lie nearest (Radford et al.,
ICML 2021). Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError, nearest
from outmodal.models.features import unit_norm
from outmodal.models.guide import encode_guide
from outmodal.models.perceptors import PerceptorConfig
from outmodal.models.prompts import class_prompts
from outmodal.train import diagnostics
from outmodal.train.methods.base import Context, Method, Passes, Stage, StepOutput
from outmodal.train.methods.labelled import check_classes, stream
from outmodal.train.methods.parts import ExportParts
from outmodal.train.methods.settings import MethodSettings
from outmodal.train.together import on_main
from outmodal.train.zero_shot import OTHER_TEMPLATES


class AlignedConfig(MethodSettings):
    """Zero-shot classification by prompts, without training.

    Attributes:
        unknown: The modality to classify: a vector modality of the data set, or one that a
            perceptor of the recipe reads.
        prompts: The frozen text encoder into the same space, as {name: hub, modality: text, path:
            FOLDER}; its `modality` may be any name.
        templates: What class names are put into, "a photo of a {}."; () is a general set.
    """

    name: Literal["aligned"] = "aligned"
    unknown: str
    prompts: PerceptorConfig | None = None
    templates: tuple[str, ...] = ()

    def build(self, context: Context) -> Aligned:
        """Make the method for a run."""
        return Aligned(context, self)


class Aligned(Method):
    """Its one stage has epochs of zero steps, so that only evaluation happens.

    Attributes:
        classifier: Its weights are the classes' vectors [C, d].
    """

    def __init__(self, context: Context, config: AlignedConfig) -> None:
        super().__init__(context)
        self.unknown = config.unknown
        table = class_vectors(context, config)
        self.classifier = nn.Linear(table.shape[1], len(table), bias=False)
        with torch.no_grad():
            self.classifier.weight.copy_(table)

    def stages(self) -> Sequence[Stage]:
        return [Stage("untrained", self.context.epochs)]

    def steps_per_epoch(self) -> int:
        return 0

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        return [stream(self.context, "unread", (self.unknown,))]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        raise RuntimeError("method 'aligned' has no training steps")

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        """Outputs of a pass: "logits" (cosines), or "embedding" (the features as they are, also as
        "representation"); each with "present" [B]. A ":MODALITY" may follow."""
        kind, _, modality = what.partition(":")
        if modality not in ("", self.unknown):
            raise UserError(f"this run has no encoder of '{modality}', only of '{self.unknown}'")
        e = batch.x[self.unknown].float()
        out = {"present": batch.valid & batch.present[self.unknown]}
        if kind == "embedding":
            return out | {"embedding": e, "representation": e}
        if kind != "logits":
            raise ValueError(f"unknown kind of output '{what}'")
        with torch.autocast(e.device.type, enabled=False):
            return out | {"logits": unit_norm(e) @ self.classifier.weight.float().T}

    def evaluate(self, passes: Passes) -> dict[str, float]:
        """Class-level "top1" and "top5" on the evaluation split."""
        context = self.context
        spec = StreamSpec("evaluate", context.eval_split, (self.unknown,), context.batch)
        out = passes.infer("logits", spec)
        rows = out["present"].bool()
        logits, truth = out["logits"][rows], torch.from_numpy(context.labels[context.eval_split])
        return {f"top{k}": diagnostics.top_k_accuracy(logits, truth[rows], k) for k in (1, 5)}

    def export_parts(self, modality: str | None) -> ExportParts:
        """Refuse: the encoder is not of this run."""
        raise UserError(
            "a run of method 'aligned' trained nothing to export: the encoder of "
            f"'{modality or self.unknown}' is the perceptor that made its features"
        )


def class_vectors(context: Context, config: AlignedConfig) -> Tensor:
    """[C, d] unit vectors of the classes: the mean over their prompts, made by the main process and
    read by all.

    Raises:
        UserError: The modality is no vector, there is no text encoder, or it is of another space.
    """
    check_classes(context)
    if config.unknown not in context.dims:
        raise UserError(
            f"method.unknown is '{config.unknown}', which is no vector modality of the data set"
            f"{nearest(config.unknown, context.dims)}: store its features with `outmodal embed`, "
            "or name a perceptor of it in `perceptors`"
        )
    if config.prompts is None:
        raise UserError(
            "method 'aligned' needs method.prompts: the text encoder into the space of "
            f"'{config.unknown}', as {{name: hub, modality: text, path: FOLDER}}"
        )
    templates, prompts = config.templates or OTHER_TEMPLATES, config.prompts
    sentences = class_prompts(context.classes, templates)
    on_main(lambda: encode_guide(prompts, sentences) is None)
    rows = unit_norm(encode_guide(prompts, sentences))
    table = unit_norm(rows.view(len(context.classes), len(templates), -1).mean(dim=1))
    if table.shape[1] != context.dims[config.unknown]:
        raise UserError(
            f"'{config.unknown}' has {context.dims[config.unknown]} numbers and the text encoder "
            f"of method.prompts gives {table.shape[1]}: they are not of one space; name the text "
            "side of what made the features"
        )
    return table
