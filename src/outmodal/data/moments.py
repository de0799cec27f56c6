"""Mean and deviation of a stream of numbers, in parts that can be put together in any number.

Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, equation 2.1: two
parts with counts n, m, means a, b and sums of squared differences S, T give the mean
a + (b - a) m / (n + m), and the sum S + T + (b - a)^2 n m / (n + m).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_BLOCK = 1 << 18
"""Rows that are turned into float64 at a time: a long film must not grow eightfold."""


class Moments:
    """Count, mean, deviation, smallest and largest value of each of C columns, in float64.

    Args:
        columns: C.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.mean: Array = np.zeros(columns)
        self._squares: Array = np.zeros(columns)
        self.low: Array = np.full(columns, np.inf)
        self.high: Array = np.full(columns, -np.inf)

    @property
    def std(self) -> Array:
        """[C] deviations of the whole (divided by the count, not by one less)."""
        spread: Array = np.sqrt(self._squares / max(self.count, 1))
        return spread

    def add(self, rows: NDArray[Any], scale: float = 1.0) -> None:
        """Take in `rows` [N, C], each value times `scale`."""
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK].astype(np.float64) * scale
            mean = block.mean(0)
            squares = np.square(block - mean).sum(0)
            self._join(len(block), mean, squares, block.min(0), block.max(0))

    def merge(self, other: Moments) -> None:
        """Take in what another one of as many columns has seen."""
        if other.count:
            self._join(other.count, other.mean, other._squares, other.low, other.high)

    def _join(self, count: int, mean: Array, squares: Array, low: Array, high: Array) -> None:
        total = self.count + count
        step = mean - self.mean
        self.mean = self.mean + step * (count / total)
        self._squares = self._squares + squares + step**2 * (self.count * count / total)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.count = total

    def as_json(self) -> dict[str, Any]:
        """Return count, mean, std, min and max; lists of C numbers, rounded to 6 digits."""
        if not self.count:
            return {"count": 0}
        named = {"mean": self.mean, "std": self.std, "min": self.low, "max": self.high}
        return {"count": self.count, **{name: _rounded(v) for name, v in named.items()}}


def _rounded(values: Array) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
