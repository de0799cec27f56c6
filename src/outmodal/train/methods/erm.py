"""ERM: cross-entropy on the labelled samples and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from outmodal.data.batch import Batch, StreamSpec
from outmodal.train.methods.base import Context, Stage, StepOutput
from outmodal.train.methods.labelled import BaselineConfig, stream
from outmodal.train.methods.supervised import Baseline
from outmodal.train.methods.terms import weighted


class ErmConfig(BaselineConfig):
    """Empirical risk minimisation on the labelled part of the training split."""

    name: Literal["erm"] = "erm"

    def build(self, context: Context) -> Erm:
        """Make the method for a run."""
        return Erm(context, self)


class Erm(Baseline):
    """min mean CE(h_O(z), y) over the labelled set."""

    def stages(self) -> Sequence[Stage]:
        return [Stage("train", self.context.epochs)]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        return [stream(self.context, "labelled", (self.unknown,), self.supervision.labelled)]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        logits = self.encode_streams(batches)["labelled"][1]
        loss = self.supervised_loss(batches["labelled"], logits)
        return weighted({"supervised": loss})
