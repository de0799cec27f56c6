"""How far modalities lie apart in their common space, as a series over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from outmodal.train import diagnostics
from outmodal.train.methods.base import Context

SAMPLES = 1000
"""Samples of the evaluation split that are looked at: an evaluation of any size pays for these."""


def probed(context: Context) -> NDArray[np.int64]:
    """Sorted indices of the evaluation split, a seeded draw that is the same at every evaluation,
    so that a curve shows training and not the draw."""
    count = len(context.labels[context.eval_split])
    if count <= SAMPLES:
        return np.arange(count)
    rng = np.random.default_rng([context.seed, count])
    return np.sort(rng.choice(count, SAMPLES, replace=False))


def discrepancy(features: Mapping[str, Tensor]) -> dict[str, float]:
    """ "mmd/A-B" and "modality_gap/A-B" of each two modalities, in their order.

    Args:
        features: Modality -> [N, d], the samples that have it. Pairs of which one is empty or not
            finite, or whose sizes differ, are left out.
    """
    found = {}
    for a, b in combinations(features, 2):
        x, y = features[a], features[b]
        if x.shape[1] == y.shape[1]:
            found[f"mmd/{a}-{b}"] = diagnostics.mmd(x, y, limit=SAMPLES)
            found[f"modality_gap/{a}-{b}"] = diagnostics.modality_gap(x, y)
    return {name: value for name, value in found.items() if math.isfinite(value)}
