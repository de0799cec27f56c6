"""Feature scales: perceptors' features and learners' outputs on one footing."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

FeatureNorm = Literal["l2_sqrtd", "l2", "none"]
SHORTEST = 1e-6


def unit_norm(e: Tensor) -> Tensor:
    """Return e / max(|e|, 1e-6) along the last axis, in fp32 whatever the input's precision."""
    wide = e.float()
    length: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide / length.clamp_min(SHORTEST)


def feature_norm(x: Tensor, kind: FeatureNorm) -> Tensor:
    """Bring features [..., d] to one scale, in fp32.

    l2: unit length. l2_sqrtd: length sqrt(d), so that an entry is about 1 whatever d is and a mean
    square over d compares between modalities. none: as they are. Perceptors' own logit scales are
    dropped before this; with them loud modalities would dominate a reconstruction loss.
    """
    if kind == "none":
        return x.float()
    unit = unit_norm(x)
    return unit if kind == "l2" else unit * x.shape[-1] ** 0.5
