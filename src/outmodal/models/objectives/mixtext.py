"""What MixText does to targets (Chen, Yang and Yang, "MixText: Linguistically-Informed
Interpolation of Hidden Space for Semi-Supervised Text Classification", ACL 2020)."""

from __future__ import annotations

import torch
from torch import Tensor


def sharpen(q: Tensor, temperature: float) -> Tensor:
    """Raise predictions [B, C] to the power 1 / temperature, and scale rows to 1.

    A temperature near 0 gives the hard label, 1 the prediction itself.
    """
    powers = q.clamp_min(torch.finfo(q.dtype).tiny).log().div(temperature)
    return powers.softmax(dim=1)


def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    """share * a + (1 - share) * b."""
    return share * a + (1.0 - share) * b


def soft_cross_entropy_rows(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_c target_c log softmax(logits)_c, [B]; for one-hot targets the cross-entropy."""
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)


def divergence_rows(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(logits)), [B]; classes with target 0 count 0."""
    entropy: Tensor = -torch.special.xlogy(target, target).sum(dim=1)
    return soft_cross_entropy_rows(logits, target) - entropy
