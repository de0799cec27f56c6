"""Diagnosing and re-learning (Wei, Li, Feng and Hu, ECCV 2024): now and then each encoder is drawn
back towards its initial weights, the more so the less what it separates in training also separates
held-out samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from outmodal.data.batch import StreamSpec
from outmodal.errors import UserError, nearest
from outmodal.train.clustering import kmeans, purity
from outmodal.train.methods.base import Context, Passes
from outmodal.train.methods.concat import Concat
from outmodal.train.methods.fusion import FusionConfig
from outmodal.train.methods.labelled import stream
from outmodal.train.selection import stratified


class DiagnoseRelearnConfig(FusionConfig):
    """Diagnosing and re-learning.

    Attributes:
        every: Epochs between diagnoses; the first is after so many.
        times: Most diagnoses in a run.
        strength: Factor s in alpha_m = tanh(s * |purity in training - purity held out|).
        validation: Split of the data set that is held out, not the one that the run is judged on.
        holdout: Share of each class's training samples to hold out instead, where the data set has
            no such split: at least one, and never a class's last one; 0 takes the split.
    """

    name: Literal["diagnose_relearn"] = "diagnose_relearn"
    every: int = Field(default=20, ge=1)
    times: int = Field(default=3, ge=0)
    strength: float = Field(default=3.0, ge=0)
    validation: str = "val"
    holdout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, context: Context) -> DiagnoseRelearn:
        """Make the method for a run."""
        return DiagnoseRelearn(context, self)


class DiagnoseRelearn(Concat):
    """Joint training with theta_m <- alpha_m theta_m^init + (1 - alpha_m) theta_m.

    Attributes:
        initial: Name -> first value of each encoder's parameters, on the CPU.
    """

    def __init__(self, context: Context, config: DiagnoseRelearnConfig) -> None:
        super().__init__(context, config)
        self.keys = config
        self._trained: NDArray[np.int64] | None = None
        self._held_out: NDArray[np.int64] | None = None
        if config.holdout:
            labels = context.labels[context.train_split]
            self._held_out = stratified(labels, config.holdout, context.seed, leave=1)
            if not len(self._held_out):
                raise UserError(
                    f"method.holdout {config.holdout} holds nothing out, as no class has two "
                    f"labelled samples in split '{context.train_split}': add samples, or name a "
                    "validation split in method.validation and leave method.holdout out"
                )
            self._trained = np.setdiff1d(np.arange(len(labels)), self._held_out)
        self.initial = {
            f"{i}/{name}": p.detach().float().cpu().clone()
            for i, learner in enumerate(self.learners)
            for name, p in learner.named_parameters()
        }

    def _check_split(self) -> None:
        """Raise UserError where nothing is held out; before training, as a finished run may be
        evaluated on any split."""
        context, keys = self.context, self.keys
        if keys.holdout:
            return
        if keys.validation not in context.splits:
            raise UserError(
                f"method.validation is '{keys.validation}', but the data set has the splits "
                f"{', '.join(context.splits) or '-'}{nearest(keys.validation, context.splits)}: "
                "name a validation split, or set method.holdout to 0.1 to hold out a part of the "
                "training split"
            )
        for split in (context.train_split, context.eval_split):
            if keys.validation == split:
                raise UserError(
                    f"method.validation is '{split}', which the run trains on or is judged by: "
                    "name another split, or set method.holdout to 0.1 to hold out a part of the "
                    "training split"
                )

    def streams(self, stage: str) -> list[StreamSpec]:
        return [
            stream(self.context, spec.name, spec.modalities, self._trained)
            for spec in super().streams(stage)
        ]

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        """Diagnose and re-learn where it is time to; log purities and alphas."""
        super().on_epoch_start(epoch, stage, passes)
        if epoch == 0:
            self._check_split()
        if epoch == 0 or epoch % self.keys.every or epoch // self.keys.every > self.keys.times:
            return {}
        trained = self.features(passes, self._trained)
        split = "" if self._held_out is not None else self.keys.validation
        held_out = self.features(passes, self._held_out, split)
        logs: dict[str, float] = {}
        for place, m in enumerate(self.modalities):
            before, after = (self._purity(out, m, epoch) for out in (trained, held_out))
            alpha = pull(before, after, self.keys.strength)
            self._relearn(place, alpha, passes)
            logs |= {
                f"purity_train/{m}": before,
                f"purity_held_out/{m}": after,
                f"alpha/{m}": alpha,
            }
        return {name: value for name, value in logs.items() if math.isfinite(value)}

    def _purity(self, out: Mapping[str, Tensor], modality: str, epoch: int) -> float:
        rows = out[f"present:{modality}"].bool() & (out["label"] >= 0)
        r, label = scaled(out[f"representation:{modality}"][rows]), out["label"][rows]
        groups = min(len(self.context.classes), len(r))
        if not groups:
            return float("nan")
        seed = self.context.seed * 1_000_003 + epoch
        return purity(kmeans(r, groups, seed).label, label)

    def _relearn(self, place: int, alpha: float, passes: Passes) -> None:
        learner = self.learners[place]
        mixed = {
            name: alpha * self.initial[f"{place}/{name}"] + (1 - alpha) * p.cpu()
            for name, p in passes.weights(learner).items()
            if f"{place}/{name}" in self.initial
        }
        if mixed and alpha > 0:
            passes.set_weights(learner, mixed)

    def method_state(self) -> dict[str, Tensor]:
        return {f"initial/{name}": t for name, t in self.initial.items()}

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        self.initial = {name.split("/", 1)[1]: t.cpu() for name, t in state.items()}


def pull(before: float, after: float, strength: float) -> float:
    """alpha = tanh(strength * |purity - purity|) in 0..1; 0 where one is unknown."""
    gap = abs(before - after)
    return math.tanh(strength * gap) if math.isfinite(gap) else 0.0


def scaled(r: Tensor) -> Tensor:
    """Each dimension of [N, d] stretched to -1..1; a constant one is 0."""
    if not len(r):
        return r
    low, high = r.amin(dim=0), r.amax(dim=0)
    width = high - low
    return torch.where(width > 0, 2 * (r - low) / width.clamp_min(1e-30) - 1, torch.zeros_like(r))
