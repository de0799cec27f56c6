"""Confidence intervals by the percentile bootstrap (Efron, Annals of Statistics 1979)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
DRAWS = 2000
_AT_ONCE = 1 << 22  # indices that are drawn together


@dataclass(frozen=True)
class Score:
    """A mean over samples, and where it may lie on other samples of the same kind.

    Attributes:
        name: What was measured.
        value: The mean.
        low, high: Ends of the interval of `LEVEL`; None where samples were not at hand.
        count: Samples; 0 where they were not at hand.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0


def score(name: str, values: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> Score | None:
    """The mean of one value a sample, with its interval; None without samples.

    Args:
        name: What the values are.
        values: [N], hits (0 or 1) or any numbers.
        draws: Resamples.
        seed: Of the resamples.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.size == 0:
        return None
    means = _resampled_means(found, draws, np.random.default_rng(seed))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Score(name, float(found.mean()), float(low), float(high), int(found.size))


def _resampled_means(
    values: NDArray[np.float64], draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    n = len(values)
    if bool(np.isin(values, (0.0, 1.0)).all()):
        # the mean of n hits drawn with replacement is binomial: the same law, without indices
        return rng.binomial(n, values.mean(), size=draws) / n
    means = np.empty(draws)
    step = max(1, _AT_ONCE // n)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        means[start : start + count] = values[rng.integers(0, n, (count, n))].mean(axis=1)
    return means
