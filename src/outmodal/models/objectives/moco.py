"""Momentum contrast against a queue of keys (He et al., CVPR 2020, Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def moco_rows(
    q: Tensor, k: Tensor, queue: Tensor | None = None, temperature: float = 0.07
) -> Tensor:
    """-log( exp(q.k / t) / (exp(q.k / t) + sum over the queue of exp(q.k' / t)) ), row by row.

    Args:
        q: [B, d] unit vectors, with gradient.
        k: [B, d] unit vectors of the same samples; constants.
        queue: [K, d] unit vectors of other samples; constants. None or K = 0: nothing is pushed
            apart, and the loss is 0 with a gradient of 0.
        temperature: t > 0.

    Returns:
        [B], in fp32 (fp64 where `q` is).
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        wide, own = q.to(dtype), k.detach().to(dtype)
        logits = [(wide * own).sum(dim=1, keepdim=True)]
        if queue is not None and len(queue):
            logits.append(wide @ queue.detach().to(dtype).T)
        return -(torch.cat(logits, dim=1) / temperature).log_softmax(dim=1)[:, 0]
