"""Naive late fusion: all encoders from scratch, cross-entropy of the fused answer, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from outmodal.data.batch import Batch
from outmodal.train.methods.base import Context, StepOutput
from outmodal.train.methods.fusion import FUSED
from outmodal.train.methods.late import AnswerConfig, LateFusion
from outmodal.train.methods.terms import weighted


class NaiveConfig(AnswerConfig):
    """Joint late fusion, the baseline that every other fusion is compared with."""

    name: Literal["naive"] = "naive"

    def build(self, context: Context) -> Naive:
        """Make the method for a run."""
        return Naive(context, self)


class Naive(LateFusion):
    """min mean CE(mean_m phi_m(x^m), y)."""

    def __init__(self, context: Context, config: NaiveConfig) -> None:
        super().__init__(context, config, answer=config.answer)

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        return weighted({"fused": self.mean_loss(self.fused(self.representations(batch)), batch)})
