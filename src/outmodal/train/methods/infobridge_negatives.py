"""Which earlier samples a sample of the batch is compared with as negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outmodal.data.draws import Draw


@dataclass(frozen=True)
class Negatives:
    """Choice from a buffer of Q samples for a batch of B.

    Attributes:
        rows: [B, K] int64 places in the buffer.
        found: [B] bool, samples with any candidate at all; the others' rows mean nothing.
        repeated: [B] bool, samples with fewer than K candidates of their T, which come up again.
        strange: [B] bool, samples without any of their T, which got candidates of any T.
    """

    rows: Tensor
    found: Tensor
    repeated: Tensor
    strange: Tensor


def draw_negatives(
    index: Tensor,
    context: Tensor,
    held_index: Tensor,
    held_context: Tensor,
    usable: Tensor,
    count: int,
    draw: Draw,
    *,
    same: bool,
) -> Negatives:
    """Draw `count` negatives of each sample, without replacement where there are enough.

    The draw depends on the sample's number, the draw and the buffer, and on nothing else: not on
    the other rows of the batch, or on the number of ranks.

    Args:
        index: [B] int64 numbers of the batch's samples; no sample is its own negative.
        context: [B] int64 T of the batch's samples.
        held_index, held_context: [Q] of the buffer.
        usable: [Q] bool, samples of the buffer that may be drawn.
        count: K.
        draw: Names the random numbers; another step needs another one.
        same: Negatives share T with the sample, where there are any.
    """
    other = (index[:, None] != held_index) & usable
    alike = other & (context[:, None] == held_context) if same else other
    strange = other.any(dim=1) & ~alike.any(dim=1)
    allowed = torch.where(strange[:, None], other, alike)
    keys = draw.uniforms(index, "negatives", len(held_index))
    chance = keys.masked_fill(~allowed, -1.0)
    best = chance.topk(min(count, len(held_index)), dim=1).indices
    there = allowed.sum(dim=1)
    places = torch.arange(count, device=index.device) % there.clamp(1, best.shape[1])[:, None]
    return Negatives(
        rows=best.gather(1, places),
        found=there > 0,
        repeated=(there > 0) & (there < count) & ~strange,
        strange=strange,
    )
