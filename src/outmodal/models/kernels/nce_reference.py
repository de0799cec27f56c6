"""`nce` written plainly, with the whole matrix and autograd: what the others are tested against."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from outmodal.models.kernels.exchange import Exchange


def nce_reference(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    *,
    both: bool,
    positives: Tensor | None,
    exclude_positive: bool,
    smoothing: float,
    weights: Tensor,
    present: Tensor | None,
    form: Literal["softmax", "sigmoid"],
    bias: Tensor,
    exchange: Exchange,
) -> Tensor:
    """Scalar loss of this rank; arguments as in `nce`, with every number a tensor.

    All of q, k, scale, positives, weights and bias have one dtype, the one that is computed in.
    Rows that are not present hold zeros and have weight 0.
    """
    positive = scale * (q * (k if positives is None else positives)).sum(1)
    live = torch.ones_like(weights, dtype=torch.bool) if present is None else present
    if form == "sigmoid":
        losses = _sigmoid(q, k, scale, bias, live, exchange)
    else:
        losses = _softmax(q, k, scale, positive, live, exclude_positive, smoothing, exchange)
        if both:
            other = _softmax(k, q, scale, positive, live, exclude_positive, smoothing, exchange)
            losses = (losses + other) / 2
    total = exchange.sum(weights.sum())
    mine = torch.where(weights > 0, weights * losses, torch.zeros_like(losses)).sum()
    return mine * torch.where(total > 0, exchange.size / total, torch.zeros_like(total))


def _softmax(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    positive: Tensor,
    live: Tensor,
    exclude_positive: bool,
    smoothing: float,
    exchange: Exchange,
) -> Tensor:
    """[n] losses of rows [n, d] against the columns of all ranks; 0 where none is a negative."""
    everything, negative = _columns(columns, live, exchange)
    logits = scale * rows @ everything.T
    has = negative.any(1)
    kept = torch.where(has[:, None], negative, torch.ones_like(negative))
    x = torch.logsumexp(logits.masked_fill(~kept, -torch.inf), 1) - positive
    losses = x if exclude_positive else -F.logsigmoid(-x)
    if smoothing:
        total = torch.where(negative, logits, torch.zeros_like(logits)).sum(1) + positive
        losses = losses + smoothing * (positive - total / (negative.sum(1) + 1))
    return torch.where(has, losses, torch.zeros_like(losses))


def _sigmoid(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, live: Tensor, exchange: Exchange
) -> Tensor:
    """[n] sums over columns of the binary cross-entropies of "is the partner"."""
    everything, negative = _columns(columns, live, exchange)
    logits = scale * rows @ everything.T + bias
    each = torch.where(negative, -F.logsigmoid(-logits), torch.zeros_like(logits))
    return each.sum(1) - F.logsigmoid(scale * (rows * columns).sum(1) + bias)


def _columns(columns: Tensor, live: Tensor, exchange: Exchange) -> tuple[Tensor, Tensor]:
    """Columns of all ranks [C, d] and [n, C] bool, which of them are negatives of which row."""
    everything = exchange.gather(columns)
    everyone = exchange.gather(live.to(columns.dtype)) > 0
    index = torch.arange(len(everything), device=columns.device)
    own = torch.arange(len(columns), device=columns.device) + exchange.offset(len(columns))
    return everything, everyone[None, :] & (index[None, :] != own[:, None])
