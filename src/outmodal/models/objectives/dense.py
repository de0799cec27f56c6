"""Cross-entropy over logits that exist as a matrix, for what no kernel covers: small batches."""

from __future__ import annotations

import torch
from torch import Tensor

_ABSENT = -1e30  # a logit that a softmax turns into exactly 0, yet finite in a sum


def cross_entropy_rows(
    logits: Tensor, partner: Tensor, live: Tensor, smoothing: float = 0.0
) -> Tensor:
    """[n] cross-entropies of rows [n, C] whose class is `partner` [n], over live columns only.

    Args:
        logits: [n, C].
        partner: [n] column of each row.
        live: [C] bool. A row whose partner is not live gives a finite number without meaning.
        smoothing: Label smoothing over the live columns.
    """
    logp = torch.where(live, logits, logits.new_tensor(_ABSENT)).log_softmax(dim=1)
    losses = -logp.gather(1, partner[:, None])[:, 0]
    if not smoothing:
        return losses
    spread = -torch.where(live, logp, logp.new_zeros(())).sum(dim=1) / live.sum().clamp(min=1)
    return (1.0 - smoothing) * losses + smoothing * spread
