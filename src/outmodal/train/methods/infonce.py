"""InfoNCE: joint training, and the modalities of a sample drawn together by a symmetric softmax
contrast over the batch (van den Oord et al., 2018; Radford et al., ICML 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import nn

from outmodal.data.batch import Batch
from outmodal.models.features import unit_norm
from outmodal.models.heads import ProjectionHead
from outmodal.models.objectives import ClipConfig
from outmodal.train import gather
from outmodal.train.methods.base import Context, StepOutput
from outmodal.train.methods.concat import Concat
from outmodal.train.methods.fusion import FUSED, FusionConfig
from outmodal.train.methods.terms import weighted


class InfoNceConfig(FusionConfig):
    """Joint training with a contrast between modalities.

    Attributes:
        alpha: Weight of the contrast, the mean over pairs of modalities.
        temperature: Of the softmax.
        dim: Size of the linear projections that are compared.
    """

    name: Literal["infonce"] = "infonce"
    alpha: float = Field(default=0.1, ge=0)
    temperature: float = Field(default=0.07, gt=0)
    dim: int = Field(default=256, ge=1)

    def build(self, context: Context) -> InfoNce:
        """Make the method for a run."""
        return InfoNce(context, self)


class InfoNce(Concat):
    """min L_task + alpha * mean over pairs of the symmetric InfoNCE of unit projections."""

    def __init__(self, context: Context, config: InfoNceConfig) -> None:
        super().__init__(context, config)
        self.alpha = config.alpha
        self.projections = nn.ModuleList(
            ProjectionHead(self.dims[m], config.dim) for m in self.modalities
        )
        objective = ClipConfig(temperature=config.temperature, learn_temperature=False)
        self.contrast = objective.build(self.modalities, config.dim)

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        r = self.representations(batch)
        heads = dict(zip(self.modalities, self.projections, strict=True))
        units = {m: unit_norm(heads[m](r[m])) for m in self.modalities}
        held = {m: self.held(m, batch) for m in self.modalities}
        out = self.contrast(units, held, gather.exchange("auto", even=True), step)
        terms = {
            "task": self.mean_loss(self.fused(r), batch),
            "contrast": out.loss / len(self.pairs()),
        }
        return weighted(terms, {"contrast": self.alpha})
