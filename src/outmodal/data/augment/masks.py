"""Masks along one axis, their width and place drawn for each sample."""

from __future__ import annotations

import torch
from torch import Tensor


def spans(numbers: Tensor, size: int, widest: float) -> Tensor:
    """Return [B, size], true where one of a sample's masks lies.

    A mask is 0 to `widest` places wide, each width equally likely, and lies anywhere (Park et
    al., 2019, section 2).

    Args:
        numbers: [B, masks * 2] uniform numbers.
        size: Places on the axis.
        widest: Most places that a mask covers, at most `size`.
    """
    pairs = numbers.view(len(numbers), -1, 2)
    width = (pairs[..., 0] * (int(min(widest, size)) + 1)).floor()
    start = (pairs[..., 1] * (size - width + 1)).floor()
    at = torch.arange(size, device=numbers.device)
    inside = (at >= start[..., None]) & (at < (start + width)[..., None])
    return inside.any(1)
