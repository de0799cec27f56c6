"""ERM: cross-entropy on the labelled samples and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.mixing import MixingConfig
from outmodal.train.methods.base import Context, Stage, StepOutput
from outmodal.train.methods.labelled import BaselineConfig, mixed_stream, stream
from outmodal.train.methods.supervised import Baseline
from outmodal.train.methods.terms import weighted


class ErmConfig(BaselineConfig):
    """Empirical risk minimisation on the labelled part of the training split.

    Attributes:
        smoothing: Label smoothing.
        mixing: MixUp and CutMix of neighbouring samples: `mixup`, `cutmix`, `p`, `switch`.
    """

    name: Literal["erm"] = "erm"
    smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    mixing: MixingConfig | None = None

    def build(self, context: Context) -> Erm:
        """Make the method for a run."""
        return Erm(context, self)


class Erm(Baseline):
    """min mean CE(h_O(z), y) over the labelled set."""

    def __init__(self, context: Context, config: ErmConfig) -> None:
        super().__init__(context, config)
        self.smoothing, self.mixing = config.smoothing, config.mixing

    def stages(self) -> Sequence[Stage]:
        return [Stage("train", self.context.epochs)]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        own = stream(self.context, "labelled", (self.unknown,), self.supervision.labelled)
        return [mixed_stream(own, self.mixing, self.unknown)]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        logits = self.encode_streams(batches)["labelled"][1]
        loss = self.supervised_loss(batches["labelled"], logits, self.smoothing)
        return weighted({"supervised": loss})
