"""Multi-task training: late fusion, and a further classifier on every modality's features.

As in "Are Multimodal Transformers Robust to Missing Modality?" (Ma et al., CVPR 2022), in the form
that UME-MMA compares with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import nn

from outmodal.data.batch import Batch
from outmodal.models.heads import linear_classifier
from outmodal.train.methods.base import Context, StepOutput
from outmodal.train.methods.fusion import FUSED
from outmodal.train.methods.late import AnswerConfig, LateFusion
from outmodal.train.methods.supervised import apply_linear
from outmodal.train.methods.terms import weighted


class MultiTaskConfig(AnswerConfig):
    """Late fusion with a further task for every modality.

    Attributes:
        auxiliary_weight: Weight of each modality's own loss beside the fused one.
    """

    name: Literal["multi_task"] = "multi_task"
    auxiliary_weight: float = Field(default=1.0, ge=0.0)

    def build(self, context: Context) -> MultiTask:
        """Make the method for a run."""
        return MultiTask(context, self)


class MultiTask(LateFusion):
    """min mean CE(mean_m phi_m(x^m), y) + sum_m mean CE(aux_m(r^m), y); tested without aux.

    A modality's own loss is over the samples that have it.
    """

    def __init__(self, context: Context, config: MultiTaskConfig) -> None:
        super().__init__(context, config, answer=config.answer)
        self.weight = config.auxiliary_weight
        self.auxiliary = nn.ModuleList(
            linear_classifier(self.dims[m], len(context.classes)) for m in self.modalities
        )

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        r = self.representations(batch)
        own = {
            m: self.mean_loss(apply_linear(layer, r[m]), batch, batch.present[m])
            for m, layer in zip(self.modalities, self.auxiliary, strict=True)
        }
        terms = {"fused": self.mean_loss(self.fused(r), batch), **own}
        return weighted(terms, dict.fromkeys(own, self.weight))
