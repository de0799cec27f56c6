"""Entropy of predictions (Grandvalet and Bengio, "Semi-supervised Learning by Entropy
Minimization", NeurIPS 2004)."""

from __future__ import annotations

from torch import Tensor


def entropy_rows(logits: Tensor) -> Tensor:
    """Entropy in nats of each row's softmax, in fp32, [B, C] -> [B]."""
    log_q = logits.float().log_softmax(dim=1)
    return -(log_q.exp() * log_q).sum(dim=1)
