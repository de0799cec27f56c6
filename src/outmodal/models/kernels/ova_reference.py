"""`ova` written plainly, with whole matrices and autograd: what the others are tested against.

Scores come from solving with every group's Gram matrix, from determinants of whole Gram matrices,
and from the sides of triangles; there are no bases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from outmodal.models.kernels.exchange import Exchange
from outmodal.models.kernels.ova_tiled import EPS, Form


def ova_reference(
    embeddings: Sequence[Tensor],
    scale: Tensor,
    *,
    form: Form,
    anchors: Sequence[int],
    both: bool,
    present: Tensor | None,
    live: Tensor | None,
    ridge: float,
    gram_dtype: torch.dtype,
    exclude_positive: bool,
    smoothing: float,
    exchange: Exchange,
) -> Tensor:
    """Sum over this rank's anchors of their losses; arguments as in `ova`.

    Embeddings hold zeros where absent and have the type that is computed in; live is [n, M], the
    modalities of a sample that are anchors.
    """
    n, count = len(embeddings[0]), len(embeddings)
    everything = [exchange.gather(e) for e in embeddings]
    there = _gathered(present, embeddings[0], count, exchange)
    alive = _gathered(live, embeddings[0], count, exchange)
    own = slice(exchange.offset(n), exchange.offset(n) + n)
    loss = embeddings[0].new_zeros(())
    for m in anchors:
        others = [i for i in range(count) if i != m]
        rest = torch.stack([everything[i] for i in others], 1)
        masks = there[:, others]
        rows = scale * scores(everything[m][own], rest, masks, form, ridge, gram_dtype)
        loss = loss + _losses(rows, alive[:, m], own, exclude_positive, smoothing) / (1 + both)
        if both:
            cols = scale * scores(everything[m], rest[own], masks[own], form, ridge, gram_dtype)
            loss = loss + _losses(cols.T, alive[:, m], own, exclude_positive, smoothing) / 2
    return loss


def _gathered(mask: Tensor | None, like: Tensor, count: int, exchange: Exchange) -> Tensor:
    """[N, M] bool of all ranks; None is all True."""
    mine = like.new_ones(len(like), count) if mask is None else mask.to(like.dtype)
    return exchange.gather(mine) > 0


def scores(
    z: Tensor, rest: Tensor, present: Tensor, form: Form, ridge: float, gram_dtype: torch.dtype
) -> Tensor:
    """[R, C] scores of z [R, d] with groups rest [C, J, d], present [C, J]; larger is better."""
    if form == "area":
        return _areas(z, rest)
    high = torch.promote_types(rest.dtype, gram_dtype)
    extra = torch.where(present, ridge, 1.0).to(high)
    gram = rest.to(high) @ rest.to(high).transpose(1, 2) + torch.diag_embed(extra)
    products = torch.einsum("rd,cjd->rcj", z.to(high), rest.to(high))
    solved = torch.linalg.solve(gram, products.permute(1, 2, 0)).permute(2, 0, 1)
    square: Tensor = (products * solved).sum(-1)
    if form == "projection":
        return (square + EPS).sqrt().to(z.dtype)
    volume: Tensor = torch.linalg.det(gram)[None, :] * (1 - square).clamp(min=0)
    return -(volume + EPS).sqrt().to(z.dtype)


def _areas(z: Tensor, rest: Tensor) -> Tensor:
    """With sides u = z - b and v = z - c of unit vectors: |u|^2 |v|^2 - (u . v)^2, halved."""
    u = 2 - 2 * z @ rest[:, 0].T
    v = 2 - 2 * z @ rest[:, 1].T
    angle = 1 - z @ rest[:, 0].T - z @ rest[:, 1].T + (rest[:, 0] * rest[:, 1]).sum(1)
    return (angle.square() - u * v) / 2


def _losses(
    logits: Tensor, alive: Tensor, own: slice, exclude_positive: bool, smoothing: float
) -> Tensor:
    """Sum of the losses of rows [n, N] whose partners are the columns `own`."""
    index = torch.arange(len(alive), device=logits.device)
    mine = index[own]
    positive = logits[torch.arange(len(mine), device=logits.device), mine]
    negative = alive[None, :] & (index[None, :] != mine[:, None])
    has = negative.any(1) & alive[own]
    kept = torch.where(has[:, None], negative, torch.ones_like(negative))
    x = torch.logsumexp(logits.masked_fill(~kept, -torch.inf), 1) - positive
    losses = x if exclude_positive else -F.logsigmoid(-x)
    if smoothing:
        total = torch.where(negative, logits, torch.zeros_like(logits)).sum(1) + positive
        losses = losses + smoothing * (positive - total / (negative.sum(1) + 1))
    return torch.where(has, losses, torch.zeros_like(losses)).sum()
