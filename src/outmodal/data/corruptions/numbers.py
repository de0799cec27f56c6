"""Damage to series and vectors: noise, and values that are lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from outmodal.data.manifest import Modality
from outmodal.data.transform import Value

Corruption = Callable[[Modality, Value, int, np.random.Generator], Value]

NOISE = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Deviation of Gaussian noise, in deviations of the sample: of each channel of a series over time,
of a vector over its entries."""
LOST = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Share of the steps, or of the entries, that are zero."""
_FLAT = 1e-3  # deviation of what does not vary, for its noise


def noise(
    spec: Modality, value: Value, severity: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Add Gaussian noise."""
    x = np.asarray(value, np.float32)
    spread = np.maximum(x.std(axis=0, keepdims=True), _FLAT)
    drawn = rng.standard_normal(x.shape, dtype=np.float32)
    noisy: NDArray[np.float32] = x + np.float32(NOISE[severity - 1]) * spread * drawn
    return noisy


def dropout(
    spec: Modality, value: Value, severity: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Zero steps of a series, all channels together, or entries of a vector, each for itself."""
    x = np.array(value, np.float32)
    x[rng.random(len(x)) < LOST[severity - 1]] = 0.0
    return x


def gap(
    spec: Modality, value: Value, severity: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Zero one stretch of a series, as long as `LOST` says."""
    x = np.array(value, np.float32)
    length = round(LOST[severity - 1] * len(x))
    start = int(rng.random() * (len(x) - length + 1))
    x[start : start + length] = 0.0
    return x


SERIES: Mapping[str, Corruption] = {"noise": noise, "dropout": dropout, "gap": gap}
VECTOR: Mapping[str, Corruption] = {"noise": noise, "dropout": dropout}
