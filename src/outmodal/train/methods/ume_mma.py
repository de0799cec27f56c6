"""UME-MMA: single modalities first, then their ensemble on samples that lose modalities.

    unimodal: min sum_m mean CE(phi_m(x^m), y) over the samples that have m
    fusion:   min mean CE(mean_m phi_m(x~^m), y), x~ with substitutes for what a draw takes away
    complete: the same on complete samples alone (optional)

Li, Du, Zhao, Huang, Zhao, "What Makes for Robust Multi-Modal Models in the Face of Missing
Modalities?" (2023). The model is never told what is missing: the answer to a substitute stays in
the mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.errors import UserError
from outmodal.train import gather
from outmodal.train.masks import DropConfig
from outmodal.train.methods.base import Context, Stage, StepOutput
from outmodal.train.methods.dropping import Dropping
from outmodal.train.methods.fusion import FUSED
from outmodal.train.methods.fusion_checks import require_samples
from outmodal.train.methods.late import AnswerConfig
from outmodal.train.methods.terms import logged, weighted


class UmeMmaConfig(AnswerConfig, DropConfig):
    """Uni-modal ensemble with missing-modality adaptation.

    Attributes:
        unimodal_epochs: Epochs of the first phase, in which every modality learns by itself. None
            is half of the run (without `complete_epochs`); 0 leaves the phase out, as the paper's
            ablation with augmentation only does.
        complete_epochs: Last epochs, in which the ensemble learns from complete samples only, for
            tests that are known to be complete.
        freeze_encoders: Train the linear heads only after the first phase. Encoders are then in
            evaluation mode, so that batch statistics do not see substitutes.
        phase_lr_scale: Factor on the learning rate after the first phase. Each phase has a
            schedule, and a warm-up, of its own.
    """

    name: Literal["ume_mma"] = "ume_mma"
    unimodal_epochs: int | None = Field(default=None, ge=0)
    complete_epochs: int = Field(default=0, ge=0)
    freeze_encoders: bool = False
    phase_lr_scale: float = Field(default=1.0, gt=0.0)

    def build(self, context: Context) -> UmeMma:
        """Make the method for a run."""
        return UmeMma(context, self)


class UmeMma(Dropping):
    """Two phases, and a third one on request, with the same encoders and heads.

    Attributes:
        settings: The configuration.
    """

    def __init__(self, context: Context, config: UmeMmaConfig) -> None:
        self.settings = config
        self._lengths = _lengths(config, context.epochs)
        super().__init__(context, config, config.drops(), answer=config.answer)

    def stages(self) -> Sequence[Stage]:
        scale = self.settings.phase_lr_scale
        return [
            Stage(name, epochs, 1.0 if name == "unimodal" else scale, anew=True)
            for name, epochs in self._lengths.items()
            if epochs
        ]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        if stage == "unimodal":
            said = self.outputs(self.representations(batch))
            return weighted(
                {m: self.mean_loss(out, batch, batch.present[m]) for m, out in said.items()}
            )
        if stage == "complete":
            whole = self.presence(batch).all(dim=1)
            return weighted({"fused": self.mean_loss(self._ensemble(batch), batch, whole)})
        gone = self.gone(batch)
        loss = self.mean_loss(self._ensemble(batch, gone), batch)
        lost = torch.stack(list(gone.values())).any(dim=0)
        return logged(loss, {"loss/fused": loss, "dropped": _share(lost, self.answered(batch))})

    def _ensemble(self, batch: Batch, gone: Mapping[str, Tensor] | None = None) -> Tensor:
        frozen = self.settings.freeze_encoders
        if frozen:
            self.learners.eval()  # until the engine's next step sets all modules to training
        with torch.no_grad() if frozen else contextlib.nullcontext():
            r = self.representations(batch, gone)
        return self.fused(r)

    def check_samples(self, presence: Tensor, answered: Tensor) -> None:
        super().check_samples(presence, answered)
        if self.settings.complete_epochs:
            require_samples(presence, len(self.modalities), self.modalities)


def _lengths(config: UmeMmaConfig, epochs: int) -> dict[str, int]:
    """Epochs of each phase; UserError where they are more than the run's."""
    first = config.unimodal_epochs
    if first is None:
        first = max(0, epochs - config.complete_epochs) // 2
    fusion = epochs - first - config.complete_epochs
    if fusion < 0:
        raise UserError(
            f"method.unimodal_epochs {first} and method.complete_epochs {config.complete_epochs} "
            f"are more than the run's engine.epochs {epochs}: lower them, or train for longer"
        )
    return {"unimodal": first, "fusion": fusion, "complete": config.complete_epochs}


def _share(hit: Tensor, rows: Tensor) -> Tensor:
    """This rank's part of the share of the global batch's `rows` [B] bool that are `hit`."""
    return gather.masked_mean(hit.float(), rows)
