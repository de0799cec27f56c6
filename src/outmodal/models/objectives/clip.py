"""The symmetric contrastive loss of CLIP over a batch that may be spread over ranks.

Source: Radford et al., Learning Transferable Visual Models From Natural Language
Supervision, ICML 2021 (arXiv 2103.00020), figure 3; InfoNCE of van den Oord et al., 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ABSENT = -1e30  # a logit that a softmax in fp32 turns into exactly 0, yet finite in a sum


def clip_loss(
    e1: Tensor,
    e2: Tensor,
    logit_scale: Tensor | float,
    all_e1: Tensor | None = None,
    all_e2: Tensor | None = None,
    offset: int = 0,
    present: Tensor | None = None,
    all_present: Tensor | None = None,
) -> Tensor:
    """Mean over this rank's pairs of half the cross-entropy both ways.

    Row n of `e1` is compared with every column of `all_e2`, and row n of `e2` with every
    column of `all_e1`; column `offset + n` is the partner. When the columns were gathered
    with gradient (backward is the reduce-scatter of the sum), the gradient averaged over
    ranks is that of the loss on the whole batch.

    Args:
        e1, e2: [b, d] unit vectors, this rank's pairs.
        logit_scale: Inverse temperature, a scalar (already exponentiated).
        all_e1, all_e2: [B, d] unit vectors of all ranks in rank order; None: this rank's own.
        offset: Column of this rank's first row.
        present: [b] bool, False on rows that are no pair (a modality is missing): these are
            neither anchors nor negatives. None: all are pairs.
        all_present: [B] bool, the same for the columns; None: this rank's own.

    Returns:
        Scalar in fp32 (fp64 for fp64 inputs). Zero, attached to the graph, without any pair.
    """
    columns1, columns2 = e1 if all_e1 is None else all_e1, e2 if all_e2 is None else all_e2
    everyone = present if all_present is None else all_present
    with torch.autocast(e1.device.type, enabled=False):
        one = _rows(e1, columns2, logit_scale, offset, everyone)
        two = _rows(e2, columns1, logit_scale, offset, everyone)
        losses = 0.5 * (one + two)
        if present is None or everyone is None:
            return losses.mean()
        kept = torch.where(present, losses, losses.new_zeros(()))
        ranks = columns1.shape[0] / e1.shape[0]
        return kept.sum() * ranks / everyone.sum().clamp(min=1)


def _rows(
    rows: Tensor, columns: Tensor, scale: Tensor | float, offset: int, present: Tensor | None
) -> Tensor:
    """[b] cross-entropies of rows [b, d] against columns [B, d], partners from `offset` on."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    logits = scale * (rows.to(dtype) @ columns.to(dtype).T)
    if present is not None:
        logits = torch.where(present[None, :], logits, logits.new_tensor(_ABSENT))
    partner = offset + torch.arange(rows.shape[0], device=rows.device)
    return F.cross_entropy(logits, partner, reduction="none")
