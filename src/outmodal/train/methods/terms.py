"""From named loss terms to a step's result."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from outmodal.train import gather
from outmodal.train.methods.base import StepOutput


def weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> StepOutput:
    """Sum the terms, each times its weight (1 unless named); log each unweighted.

    A term's mean over ranks is its value on the global batch, so one reduction serves all logs.
    """
    factors = weights or {}
    loss = torch.stack([factors.get(name, 1.0) * term for name, term in terms.items()]).sum()
    return logged(loss, {f"loss/{name}": term for name, term in terms.items()})


def logged(loss: Tensor, logs: Mapping[str, Tensor]) -> StepOutput:
    """A step's result whose logs are the loss, as "loss", and `logs`, each its mean over ranks."""
    values = torch.stack([loss.detach(), *(t.detach() for t in logs.values())]).float()
    means = gather.all_gather_flat(values).mean(dim=0)
    return StepOutput(loss, dict(zip(["loss", *logs], means.unbind(), strict=True)))
