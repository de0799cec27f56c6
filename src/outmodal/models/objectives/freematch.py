"""FreeMatch's thresholds and class fairness (Wang et al., "FreeMatch: Self-adaptive Thresholding
for Semi-supervised Learning", ICLR 2023, arXiv 2205.07246) as functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def class_thresholds(level: Tensor, prior: Tensor) -> Tensor:
    """Confidence that each class asks for, [C]: the global level times prior / max prior.

    Args:
        level: Scalar, the running mean of the largest probability.
        prior: [C], the running mean of the predictions.
    """
    return level * (prior / prior.max())


def kept_rows(q: Tensor, level: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Hard labels of predictions q [B, C], and which reach their class's threshold: [B], [B]."""
    confidence, label = q.max(dim=1)
    return label, confidence >= class_thresholds(level, prior)[label]


def class_histogram(label: Tensor, classes: int) -> Tensor:
    """Share of each class among labels [B]: [C], summing to 1 (zeros without any label)."""
    counts = torch.bincount(label, minlength=classes).float()
    return counts / counts.sum().clamp_min(1.0)


def fairness(
    prior: Tensor, histogram: Tensor, batch_prior: Tensor, batch_histogram: Tensor
) -> Tensor:
    """sum over classes of norm(prior / histogram) * log norm(batch prior / batch histogram):
    minus the cross-entropy of the two, which the paper adds to the loss.

    Classes that the batch does not predict have no quotient and are left out of its norm and of
    the sum, as a term of theirs would have no gradient.

    Args:
        prior, histogram: [C] running means over the steps; constants.
        batch_prior: [C] mean prediction of the batch, with gradient.
        batch_histogram: [C] shares of the classes that are predicted; a constant.

    Returns:
        Scalar, at most 0.
    """
    there = batch_histogram > 0
    target = prior / histogram.clamp_min(torch.finfo(histogram.dtype).tiny)
    target = (target / target.sum())[there]
    quotient = batch_prior[there] / batch_histogram[there]
    return (target.detach() * (quotient / quotient.sum()).log()).sum()
