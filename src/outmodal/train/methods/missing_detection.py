"""Missing detection: every modality's classifier has one more class, for an input that is none.

After Vernekar et al., "Out-of-distribution Detection in Classifiers via Generation" (2019), in the
form that UME-MMA compares with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.data.batch import Batch
from outmodal.train import gather
from outmodal.train.masks import DropConfig
from outmodal.train.methods.base import Context, StepOutput
from outmodal.train.methods.dropping import Dropping
from outmodal.train.methods.fusion import FUSED
from outmodal.train.methods.late import LateConfig
from outmodal.train.methods.supervised import cross_entropy_rows
from outmodal.train.methods.terms import weighted


class MissingDetectionConfig(LateConfig, DropConfig):
    """Late fusion of the modalities that do not look missing."""

    name: Literal["missing_detection"] = "missing_detection"

    def build(self, context: Context) -> MissingDetection:
        """Make the method for a run."""
        return MissingDetection(context, self)


class MissingDetection(Dropping):
    """min sum_m mean CE(phi_m(x^m), y, or class C where x^m is a substitute).

    At test the modalities whose classifier says C are left out; where all say so, none is.
    """

    def __init__(self, context: Context, config: MissingDetectionConfig) -> None:
        super().__init__(context, config, config.drops(), extra=1)

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        gone = self.gone(batch)
        said = self.outputs(self.representations(batch, gone))
        rows, missing = self.answered(batch), len(self.context.classes)
        terms = {}
        for m, logits in said.items():
            wanted = batch.label.masked_fill(gone[m] | ~batch.present[m], missing)
            terms[m] = gather.masked_mean(cross_entropy_rows(logits, wanted), rows)
        return weighted(terms)

    def alone(self, r: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: out[:, :-1] for m, out in self.outputs(r).items()}

    def fused(self, r: Mapping[str, Tensor]) -> Tensor:
        said = torch.stack(list(self.outputs(r).values()))
        there = said.argmax(dim=-1, keepdim=True) < len(self.context.classes)
        there = there | ~there.any(dim=0)
        logits, count = said[..., :-1], there.sum(dim=0)
        if self.fuse == "mean_logits":
            return (logits * there).sum(dim=0) / count
        logs = F.log_softmax(logits, dim=-1).masked_fill(~there, -torch.inf)
        return torch.logsumexp(logs, dim=0) - count.log()

    def classifier(self, modality: str) -> nn.Linear | None:
        return None  # an export's classifier has the data set's classes, and no other
