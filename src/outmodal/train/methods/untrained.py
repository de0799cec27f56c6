"""Random: the untrained learner, the floor of the COX tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from outmodal.data.batch import Batch, StreamSpec
from outmodal.train.methods.base import Context, Stage, StepOutput
from outmodal.train.methods.labelled import BaselineConfig, stream
from outmodal.train.methods.supervised import Baseline


class RandomConfig(BaselineConfig):
    """No training: the initial weights are evaluated."""

    name: Literal["random"] = "random"

    def build(self, context: Context) -> Random:
        """Make the method for a run."""
        return Random(context, self)


class Random(Baseline):
    """Initial weights. Its one stage has epochs of zero steps, so that only evaluation happens."""

    def stages(self) -> Sequence[Stage]:
        return [Stage("untrained", self.context.epochs)]

    def steps_per_epoch(self) -> int:
        return 0

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        return [stream(self.context, "labelled", (self.unknown,), self.supervision.labelled)]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        raise RuntimeError("method 'random' has no training steps")
