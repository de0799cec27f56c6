"""Synergy: a frozen encoder's answers to unmatched inputs pull at a learner's latents.

    x -> r = f(x) -> z = Phi(r) in the helper's space -> logits = h(z)
    loss = (1 - alpha) CE(logits, y) + alpha D(z, sg target)

Lee and Yoon, "Can One Modality Model Synergize Training of Other Modality Models?" (ICLR 2025).
The helper is not there at test time, and where its inputs are finitely many, not in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from outmodal.data.batch import Batch, StreamSpec
from outmodal.models.features import unit_norm
from outmodal.models.heads import Kind, linear_classifier
from outmodal.train import gather
from outmodal.train.methods import synergy_report
from outmodal.train.methods.base import Context, Passes, Stage, StepOutput
from outmodal.train.methods.labelled import mixed_stream, stream
from outmodal.train.methods.parts import ExportParts
from outmodal.train.methods.supervised import Supervised, label_rows
from outmodal.train.methods.synergy_config import LatentLoss, Reduction, SynergyConfig
from outmodal.train.methods.synergy_targets import MAIN, make_targets
from outmodal.train.methods.terms import weighted


class Synergy(Supervised):
    """Cross-entropy, and the latents' distance to what a helper says."""

    def __init__(self, context: Context, config: SynergyConfig) -> None:
        self.settings = config.resolved()
        # alpha 0 keeps the targets' size: it is the baseline of the same architecture
        targets = make_targets(context, self.settings)
        kind: Kind = "linear_ln" if config.latent_map == "linear_ln" else "linear"
        super().__init__(
            context,
            config.model_copy(update={"dim": targets.dim}),
            norm="none",
            label_draw="balanced",
            head=kind,
        )
        self.targets = targets
        self.side = config.latent_map == "side"
        if self.side:
            self.classifier = linear_classifier(self.learner.dim, len(context.classes))

    def stages(self) -> Sequence[Stage]:
        return [Stage("train", self.context.epochs)]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        helped = self.settings.alpha > 0
        names = (self.unknown, *self.targets.beside) if helped else (self.unknown,)
        own = stream(self.context, MAIN, names, self._chosen())
        own = mixed_stream(own, self.settings.mixing, self.unknown)
        return [own, *self.targets.streams()] if helped else [own]

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        """Before the first epoch: does the training split hold what the targets are made of?"""
        if epoch or not self.settings.alpha or not self.targets.guide:
            return {}
        paired = self.unknown if self.targets.beside else ""
        return synergy_report.guide_share(self.context, self.targets.guide, passes, paired)

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[MAIN]
        z, logits = self.latents(batch.x[self.unknown])
        usable = self.usable(batch)
        losses = label_rows(logits, batch, self.settings.smoothing)
        terms = {"supervised": gather.masked_mean(losses, usable & (batch.label >= 0))}
        alpha = self.settings.alpha
        if not alpha:
            return weighted(terms)
        target, there = self.targets.rows(batches, step)
        terms["latent"] = gather.masked_mean(self.distance(z, target), usable & there)
        out = weighted(terms, {"supervised": 1.0 - alpha, "latent": alpha})
        if not self.targets.guide:
            return out
        # rows whose description is missing, or whose draw brought themselves
        without = gather.global_mean((~there).float(), usable)
        return StepOutput(out.loss, {**out.logs, "targets/missing": without})

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs -> latents z [B, dim] and logits [B, C], both fp32."""
        r = self.learner(x)
        z = self.projection(r).float()
        return z, self.classify(r.float() if self.side else z)

    def distance(self, z: Tensor, target: Tensor) -> Tensor:
        """`latent_rows` as the configuration has it."""
        reduction = self.settings.latent_reduction or "mean"
        return latent_rows(z, target, self.settings.latent_loss, reduction)

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        """See `Supervised.infer`; with `latent_map` side the embedding is the representation.

        Also "latents": z, and where there is a `guide` "own" [B, d], the samples' own features of
        it, with "own_present" [B]; and "guide": "present" [B] of the guide alone, "paired" [B]
        of all that the batch holds.
        """
        guide = self.targets.guide
        kind, _, modality = what.partition(":")
        if kind == "guide":
            held = torch.stack([batch.valid, *batch.present.values()])
            return {"present": batch.valid & batch.present[guide], "paired": held.all(dim=0)}
        if kind == "embedding" and self.side:
            found = super().infer(what, batch)
            return {**found, "embedding": found["representation"]}
        if kind not in ("logits", "z", "latents") or modality not in ("", self.unknown):
            return super().infer(what, batch)
        z, logits = self.latents(batch.x[self.unknown])
        found = {"present": self.usable(batch), "logits": logits}
        if kind == "logits":
            return found
        if kind == "latents" and guide:
            found |= {"own": batch.x[guide].float(), "own_present": batch.present[guide]}
        return {**found, "z": z}

    def diagnose(self, passes: Passes) -> dict[str, float]:
        """On the evaluation split: the latent loss, and Wasserstein distances to the targets."""
        return synergy_report.diagnose(self, passes)

    def method_state(self) -> dict[str, Tensor]:
        """The targets, so that a run is evaluated and exported where its helper is not."""
        return self.targets.state()

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Method.load_method_state`."""
        self.targets.load(state)

    def export_parts(self, modality: str | None) -> ExportParts:
        """See `Supervised.export_parts`; with `latent_map` side the map is left behind."""
        parts = super().export_parts(modality)
        if not self.side:
            return parts
        return ExportParts(parts.learner, None, self.classifier, "none")

    def _chosen(self) -> NDArray[np.int64] | None:
        whole = len(self.supervision.labelled) == len(self.supervision.labels)
        return None if whole else self.supervision.labelled


def latent_rows(z: Tensor, target: Tensor, loss: LatentLoss, reduction: Reduction) -> Tensor:
    """Distance of each latent [B, d] to its target, without a gradient to it: [B], fp32."""
    target = target.detach().float()
    if loss == "cosine":
        return 1.0 - (unit_norm(z) * unit_norm(target)).sum(dim=1)
    # a sum first: the gradient of a mean along rows is written out in full once more
    square = F.mse_loss(z.float(), target, reduction="none").sum(dim=1)
    return square / z.shape[1] if reduction == "mean" else 0.5 * square


__all__ = ["Synergy", "latent_rows"]
