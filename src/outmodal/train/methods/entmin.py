"""EntMin: ERM plus low entropy on the unlabelled samples (Grandvalet and Bengio, NeurIPS 2004)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from outmodal.data.batch import Batch, StreamSpec
from outmodal.models.objectives.entropy import entropy_rows
from outmodal.train import gather
from outmodal.train.methods.base import Context, Stage, StepOutput
from outmodal.train.methods.labelled import BaselineConfig, stream
from outmodal.train.methods.supervised import Baseline
from outmodal.train.methods.terms import weighted


class EntMinConfig(BaselineConfig):
    """Entropy minimisation.

    Attributes:
        lambda_entropy: Weight of the mean entropy on unlabelled samples.
    """

    name: Literal["entmin"] = "entmin"
    lambda_entropy: float = Field(default=0.1, ge=0.0)

    def build(self, context: Context) -> EntMin:
        """Make the method for a run."""
        return EntMin(context, self)


class EntMin(Baseline):
    """min mean CE on the labelled + lambda * mean entropy on the unlabelled samples."""

    def __init__(self, context: Context, config: EntMinConfig) -> None:
        super().__init__(context, config)
        self.weight = config.lambda_entropy

    def stages(self) -> Sequence[Stage]:
        return [Stage("train", self.context.epochs)]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        sets = {"labelled": self.supervision.labelled, "unlabelled": self.supervision.unlabelled}
        return [stream(self.context, n, (self.unknown,), rows) for n, rows in sets.items()]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        encoded = self.encode_streams(batches)
        terms = {"supervised": self.supervised_loss(batches["labelled"], encoded["labelled"][1])}
        if "unlabelled" in batches:  # absent when every training sample is labelled
            rows = self.usable(batches["unlabelled"])
            terms["entropy"] = gather.masked_mean(entropy_rows(encoded["unlabelled"][1]), rows)
        return weighted(terms, {"entropy": self.weight})
