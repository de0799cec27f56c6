"""PMR: prototypical modal rebalance (Fan et al., CVPR 2023).

Each class has a prototype in each modality, the mean of its representations. A modality whose
prototypes tell the classes apart less well than the others' do also learns from the distances to
them, a loss that no other modality can lower for it. The authors' entropy term on the stronger
modality is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.train import gather
from outmodal.train.methods.base import Context, Passes, Stage, StepOutput
from outmodal.train.methods.concat import Concat, ScoreBoard, windowed
from outmodal.train.methods.fusion import FUSED, FusionConfig
from outmodal.train.methods.terms import weighted
from outmodal.train.selection import stratified

REBALANCED = "rebalanced"


class PmrConfig(FusionConfig):
    """Prototypical rebalance.

    Attributes:
        alpha: Weight of the prototypes' cross-entropy of a weaker modality.
        momentum: Share of a prototype that is kept when it is refreshed, before each epoch.
        fraction: Share of each class's training samples that prototypes are made of.
        end: The term is used in epochs before this one.
    """

    name: Literal["pmr"] = "pmr"
    alpha: float = Field(default=1.0, ge=0)
    momentum: float = Field(default=0.2, ge=0, lt=1)
    fraction: float = Field(default=0.1, gt=0, le=1)
    end: int = Field(default=70, ge=0)

    def build(self, context: Context) -> Pmr:
        """Make the method for a run."""
        return Pmr(context, self)


class Pmr(Concat):
    """min L_task + alpha * sum over weaker modalities of CE(-|r^m - prototypes^m|, y).

    Attributes:
        prototypes: modality -> [C, d_m]; a row of NaN for a class without a sample so far.
    """

    def __init__(self, context: Context, config: PmrConfig) -> None:
        super().__init__(context, config)
        self.keys = config
        labels = context.labels[context.train_split]
        self._sample = stratified(labels, config.fraction, context.seed)
        self.prototypes = {
            m: torch.full((self.count, size), torch.nan) for m, size in self.dims.items()
        }

    def stages(self) -> Sequence[Stage]:
        return windowed(REBALANCED, self.context.epochs, 0, self.keys.end)

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        """Refresh the prototypes from a fixed draw of training samples."""
        super().on_epoch_start(epoch, stage, passes)
        if stage != REBALANCED:
            return {}
        out = self.features(passes, self._sample)
        device = gather.world().device
        for m in self.modalities:
            rows = out[f"present:{m}"].bool() & (out["label"] >= 0)
            means = class_means(out[f"representation:{m}"][rows], out["label"][rows], self.count)
            self.prototypes[m] = blend(self.prototypes[m], means, self.keys.momentum, device)
        return {}

    @property
    def count(self) -> int:
        """Classes."""
        return len(self.context.classes)

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        r = self.representations(batch)
        terms = {"task": self.mean_loss(self.fused(r), batch)}
        if stage != REBALANCED:
            return weighted(terms)
        logits = {m: prototype_logits(r[m], self.prototypes[m]) for m in self.modalities}
        all_there = self.answered(batch) & self.presence(batch).all(dim=1)
        ratios = ScoreBoard().add(logits, batch.label, all_there).tolist()
        for m in self.modalities:
            known = torch.isfinite(self.prototypes[m][:, 0])[batch.label.clamp_min(0)]
            rows = self.held(m, batch) & known
            terms[f"prototypes_{m}"] = self.mean_loss(logits[m], batch, rows)
        weights = {
            f"prototypes_{m}": self.keys.alpha * (ratio < 1)
            for m, ratio in zip(self.modalities, ratios, strict=True)
        }
        return weighted(terms, weights)

    def method_state(self) -> dict[str, Tensor]:
        return {f"prototypes/{m}": t for m, t in self.prototypes.items()}

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        device = gather.world().device
        self.prototypes = {name.split("/", 1)[1]: t.to(device) for name, t in state.items()}


def prototype_logits(r: Tensor, prototypes: Tensor) -> Tensor:
    """-|r - prototype| [B, C] of representations [B, d], fp32; very low for classes without one."""
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(r.float(), prototypes.nan_to_num(0.0), compute_mode=exact)
    return torch.where(torch.isfinite(prototypes[:, 0]), -distance, -1e4)


def class_means(r: Tensor, label: Tensor, count: int) -> Tensor:
    """[C, d] mean of each class's rows; NaN where it has none."""
    sums = torch.zeros(count, r.shape[1], dtype=torch.float64).index_add_(0, label, r.double())
    return (sums / torch.bincount(label, minlength=count)[:, None]).float()


def blend(before: Tensor, new: Tensor, momentum: float, device: torch.device) -> Tensor:
    """momentum * before + (1 - momentum) * new; whichever is known where one is NaN."""
    before, new = before.to(device), new.to(device)
    mixed = momentum * before + (1 - momentum) * new
    return torch.where(new.isnan(), before, torch.where(before.isnan(), new, mixed))
