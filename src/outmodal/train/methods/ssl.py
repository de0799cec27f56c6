"""SSL: predictions that Gaussian noise on the input does not change.

A baseline of COX's tables, whose paper says no more of it than that. The noise lies on the
learner's input, after normalisation; on token ids, which bear none, on their embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.draws import Draw
from outmodal.errors import UserError
from outmodal.models.learners.layered import Layered
from outmodal.train import gather
from outmodal.train.methods.base import Context, StepOutput
from outmodal.train.methods.labelled import stream
from outmodal.train.methods.terms import weighted
from outmodal.train.methods.unlabelled import Unlabelled, UnlabelledConfig


class SslConfig(UnlabelledConfig):
    """Consistency of predictions under Gaussian noise.

    Attributes:
        sigma: Standard deviation of the noise, where the learner's input is normalised to about 1.
        lambda_consistency: Weight of the mean squared difference of the two predictions.
    """

    name: Literal["ssl"] = "ssl"
    sigma: float = Field(default=0.1, gt=0.0)
    lambda_consistency: float = Field(default=1.0, ge=0.0)

    def build(self, context: Context) -> Ssl:
        """Make the method for a run."""
        return Ssl(context, self)


class Ssl(Unlabelled):
    """min [CE on the labelled +] lambda * mean |q(x + noise) - q(x + other noise)|^2 / C."""

    def __init__(self, context: Context, config: SslConfig) -> None:
        super().__init__(context, config)
        self.sigma, self.weight = config.sigma, config.lambda_consistency

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        sets = {"labelled": self.supervision.labelled, "unlabelled": self.supervision.unlabelled}
        return [stream(self.context, n, (self.unknown,), rows) for n, rows in sets.items()]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        clean = {n: b.x[self.unknown] for n, b in batches.items() if n == "labelled"}
        sizes = {name: len(x) for name, x in clean.items()}
        if "unlabelled" in batches:  # absent when every training sample is labelled
            sizes |= dict.fromkeys(("one", "other"), len(batches["unlabelled"]))
        r = self._noisy(list(clean.values()), batches.get("unlabelled"), step)
        encoded = self.split_parts(r, sizes)
        terms = {}
        if "labelled" in batches:
            terms["supervised"] = self.supervised_loss(batches["labelled"], encoded["labelled"][2])
        if "unlabelled" in batches:
            gaps = consistency_rows(encoded["one"][2], encoded["other"][2])
            rows = self.usable(batches["unlabelled"])
            terms["consistency"] = gather.masked_mean(gaps, rows)
        return weighted(terms, {"consistency": self.weight})

    def _noisy(self, clean: list[Tensor], unlabelled: Batch | None, step: int) -> Tensor:
        """Representations of clean inputs and of two noisy copies of the unlabelled ones."""
        if unlabelled is None:
            out: Tensor = self.learner(torch.cat(clean))
            return out
        twice = [unlabelled.x[self.unknown]] * 2
        x, keys = torch.cat([*clean, *twice]), _keys(unlabelled)
        mask, learner = None, self.learner
        if not x.is_floating_point():
            if not isinstance(learner, Layered):
                raise UserError(
                    f"method 'ssl' adds noise to inputs, and learner '{learner.modality}' reads "
                    "whole numbers: choose learner bert, or method entmin"
                )
            x, mask = learner.first(x)
        still = x[: len(x) - 2 * len(keys)]
        draws = [self._noise(x, keys, step, look) for look in (1, 2)]
        x = torch.cat([still, x[len(still) :] + torch.cat(draws)])
        if mask is None or not isinstance(learner, Layered):
            out = learner(x)
            return out
        return learner.pooled(learner.onward(x, mask, 0, learner.depth), mask)

    def _noise(self, like: Tensor, keys: Tensor, step: int, look: int) -> Tensor:
        """[B, ...] noise that depends on run, step, sample and look, and on no rank."""
        draw = Draw(self.context.seed, step, f"ssl/{look}")
        normals = draw.normals(keys, "noise", math.prod(like.shape[1:]))
        return self.sigma * normals.view(len(keys), *like.shape[1:]).to(like.dtype)


def _keys(batch: Batch) -> Tensor:
    """Numbers to draw by: keys and indices, as samples of two sources may share a key."""
    return (batch.key ^ (batch.index << 20)) & (2**63 - 1)


def consistency_rows(one: Tensor, other: Tensor) -> Tensor:
    """Mean over classes of the squared difference of two softmaxes: logits [B, C] -> [B], fp32."""
    gap = one.float().softmax(dim=1) - other.float().softmax(dim=1)
    return gap.square().mean(dim=1)
