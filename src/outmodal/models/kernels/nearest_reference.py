"""`nearest` written plainly: every distance from a difference, in fp64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def nearest_reference(z: Tensor, v: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """As `nearest` without options, for k up to the number of columns; holds [N, M, d]."""
    total = sum((z.double()[:, None] - part.double()[None]).norm(dim=2) for part in v)
    assert isinstance(total, Tensor)
    distance = (total / len(v)).to(torch.promote_types(z.dtype, torch.float32))
    order = distance.sort(dim=1, stable=True)  # equal distances stay in the order of the index
    return order.values[:, :k], order.indices[:, :k]
