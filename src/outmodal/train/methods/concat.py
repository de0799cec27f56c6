"""Fusion by concatenation: [r^1, .., r^M] -> one linear classifier, and what its methods share."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from outmodal.data.batch import Batch, StreamSpec
from outmodal.models.heads import linear_classifier
from outmodal.train import gather
from outmodal.train.methods.base import Context, Passes, Stage, StepOutput
from outmodal.train.methods.fusion import FUSED, Fusion, FusionConfig
from outmodal.train.methods.labelled import stream
from outmodal.train.methods.supervised import apply_linear
from outmodal.train.methods.terms import weighted

PLAIN = "plain"


class Concat(Fusion):
    """min mean CE(W [r^1, .., r^M] + b, y); subclasses add to it.

    Attributes:
        joint: The classifier.
    """

    def __init__(self, context: Context, config: FusionConfig) -> None:
        super().__init__(context, config)
        self.joint = linear_classifier(sum(self.dims.values()), len(context.classes))

    def fused(self, r: Mapping[str, Tensor]) -> Tensor:
        return apply_linear(self.joint, torch.cat([r[m].float() for m in self.modalities], dim=1))

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        return weighted({"task": self.mean_loss(self.fused(self.representations(batch)), batch)})

    def pairs(self) -> list[tuple[str, str]]:
        """All unordered pairs of modalities, in their order."""
        return list(combinations(self.modalities, 2))

    def held(self, modality: str, batch: Batch) -> Tensor:
        """[B] bool: real rows that hold a modality."""
        return batch.valid & batch.present[modality]

    @torch.no_grad()
    def shares(self, r: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each modality's part of the logits, W_m r^m + b / M [B, C], detached: they add up to
        `fused`. The classifier must be whole on this rank."""
        parts = torch.split(self.joint.weight.float(), list(self.dims.values()), dim=1)
        bias = self.joint.bias.float() / len(self.modalities)
        return {
            m: F.linear(r[m].float(), part, bias)
            for m, part in zip(self.modalities, parts, strict=True)
        }

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        """As of `Fusion`; also "features", r of each modality ("representation:NAME" [B, d_m],
        "present:NAME" [B]) with "label" [B]."""
        if what != "features":
            return super().infer(what, batch)
        out = {"label": batch.label}
        for m, r in self.representations(batch).items():
            out[f"representation:{m}"] = r.float()
            out[f"present:{m}"] = self.held(m, batch)
        return out

    def features(
        self, passes: Passes, select: NDArray[np.int64] | None = None, split: str = ""
    ) -> dict[str, Tensor]:
        """See `infer`: "features" of the training split, or of another, or of some samples."""
        spec = stream(self.context, "features", self.modalities, select)
        if split:
            spec = StreamSpec("features", split, self.modalities, self.context.batch, select)
        return passes.infer("features", spec)

    def encoder_names(self, modality: str) -> list[str]:
        """Names, in this method, of the parameters of a modality's encoder."""
        place = self.place(modality)
        own = self.learners[place].named_parameters()
        return [f"learners.{place}.{name}" for name, p in own if p.requires_grad]


class ScoreBoard:
    """Which modality the shared classifier already answers by, over the batches of a step.

    score_m = sum over samples of softmax(logits_m)[y], of samples that have all modalities;
    ratio_m = score_m / mean of the others' (Peng et al., CVPR 2022, equation 8, for any M).
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, logits: Mapping[str, Tensor], label: Tensor, rows: Tensor) -> Tensor:
        """Count a batch, and return the ratios [M] so far, equal on all ranks. Collective.

        Args:
            logits: modality -> [B, C] of this rank.
            label: [B] classes.
            rows: [B] bool, the samples that count.
        """
        chosen = label.clamp_min(0)[:, None]
        scores = [
            (t.float().softmax(dim=1).gather(1, chosen)[:, 0] * rows).double().sum()
            for t in logits.values()
        ]
        found = gather.all_gather_flat(torch.stack(scores)).sum(dim=0)
        self._sums = found if self._sums is None else self._sums + found
        return self.ratios(len(scores))

    def ratios(self, count: int) -> Tensor:
        """[M] fp32; 1 where nothing was counted."""
        if self._sums is None:
            return torch.ones(count)
        others = (self._sums.sum() - self._sums) / max(1, count - 1)
        found = torch.where(others > 0, self._sums / others, torch.ones_like(others))
        return found.float()

    def clear(self) -> None:
        """Begin another step."""
        self._sums = None


def windowed(name: str, epochs: int, begin: int, end: int) -> list[Stage]:
    """Stages of a run: `name` from epoch `begin` and before `end`, "plain" in the others."""
    first, last = min(begin, epochs), min(max(begin, end), epochs)
    parts = [Stage(PLAIN, first), Stage(name, last - first), Stage(PLAIN, epochs - last)]
    return [stage for stage in parts if stage.epochs]
