"""Confidence intervals by the percentile bootstrap (Efron, Annals of Statistics 1979).

A resample of n samples is a vector of counts, how often each is drawn. Statistics here depend on
means only, so samples with equal values are drawn together, from the multinomial law of their
counts: the same law as drawing samples one by one, for less work where values repeat, as hits do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

LEVEL = 0.95
DRAWS = 2000
_AT_ONCE = 1 << 22  # indices, or counts, that are drawn together

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Takes the means of k columns in R resamples, [R, k]; returns the statistic [R]."""


@dataclass(frozen=True)
class Score:
    """A statistic of samples, and where it may lie on other samples of the same kind.

    Attributes:
        name: What was measured.
        value: The statistic.
        low, high: Ends of the interval of `LEVEL`; None where samples were not at hand.
        count: Samples; 0 where they were not at hand.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn.

    Attributes:
        draws: Resamples; 0 leaves intervals out.
        seed: Of the resamples.
    """

    draws: int = DRAWS
    seed: int = 0

    def mean(self, name: str, values: ArrayLike | Tensor) -> Score | None:
        """The mean of one number a sample, [N]; None without samples."""
        column = _array(values).reshape(-1, 1)
        return self.of(name, column, lambda means: means[:, 0])

    def ratio(self, name: str, above: ArrayLike | Tensor, below: ArrayLike | Tensor) -> Score:
        """The ratio of the means of two numbers a sample, drawn together, so that what moves both
        is no uncertainty of the ratio. NaN and no interval where the second mean is 0."""
        pairs = np.stack([_array(above), _array(below)], axis=1)
        if not pairs[:, 1].any():
            return Score(name, float("nan"), count=len(pairs))
        score = self.of(name, pairs, _quotient)
        assert score is not None
        return score

    def balanced(self, name: str, hits: ArrayLike | Tensor, label: ArrayLike | Tensor) -> Score:
        """The mean over classes of their accuracies, [N] hits of samples of [N] classes.

        Classes without a sample have no accuracy, here as in a resample.
        """
        hit, truth = _array(hits) > 0, _array(label).astype(np.int64)
        _, place = np.unique(truth, return_inverse=True)
        cells = np.bincount(2 * place + hit, minlength=2 * (place.max() + 1)).astype(np.float64)
        value = _balanced(cells[None])[0]
        if not self.draws:
            return Score(name, float(value), count=len(hit))
        rng = np.random.default_rng(self.seed)
        shares, found = cells / cells.sum(), []
        for count in _chunks(self.draws, len(cells)):
            found.append(_balanced(rng.multinomial(len(hit), shares, size=count)))
        low, high = _ends(np.concatenate(found))
        return Score(name, float(value), low, high, len(hit))

    def of(self, name: str, columns: Floats, statistic: Statistic) -> Score | None:
        """A statistic of the means of k numbers a sample, [N, k]; None without samples."""
        if not len(columns):
            return None
        value = float(statistic(columns.mean(axis=0, keepdims=True))[0])
        if not self.draws or not np.isfinite(columns).all():
            return Score(name, value, count=len(columns))
        means = resampled_means(columns, self.draws, np.random.default_rng(self.seed))
        low, high = _ends(statistic(means))
        return Score(name, value, low, high, len(columns))


def score(
    name: str, values: ArrayLike | Tensor, *, draws: int = DRAWS, seed: int = 0
) -> Score | None:
    """The mean of one value a sample, with its interval; None without samples.

    Args:
        name: What the values are.
        values: [N], hits (0 or 1) or any numbers.
        draws: Resamples.
        seed: Of the resamples.
    """
    return Bootstrap(draws, seed).mean(name, values)


def resampled_means(columns: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """[draws, k] means of the columns [N, k] over resamples of their N rows."""
    n = len(columns)
    kinds, counts = np.unique(columns, axis=0, return_counts=True)
    means = np.empty((draws, columns.shape[1]))
    grouped, start = len(kinds) * 8 <= n, 0
    for count in _chunks(draws, len(kinds) if grouped else n):
        stop = start + count
        if grouped:
            means[start:stop] = rng.multinomial(n, counts / n, size=count) @ kinds / n
        else:
            means[start:stop] = columns[rng.integers(0, n, (count, n))].mean(axis=1)
        start = stop
    return means


def _chunks(draws: int, width: int) -> list[int]:
    """Numbers of resamples drawn together: they add up to `draws`."""
    step = max(1, _AT_ONCE // width)
    return [min(step, draws - start) for start in range(0, draws, step)]


def _ends(found: Floats) -> tuple[float, float] | tuple[None, None]:
    found = found[np.isfinite(found)]
    if not len(found):
        return None, None
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)


def _quotient(means: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return means[:, 0] / means[:, 1]


def _balanced(cells: ArrayLike) -> Floats:
    """[R] mean accuracy of classes from counts [R, 2 * C] of their misses and hits."""
    pairs = np.asarray(cells, np.float64).reshape(len(np.asarray(cells)), -1, 2)
    size = pairs.sum(axis=2)
    accuracy = np.divide(pairs[..., 1], size, out=np.zeros_like(size), where=size > 0)
    found: Floats = accuracy.sum(axis=1) / (size > 0).sum(axis=1)
    return found


def _array(values: ArrayLike | Tensor) -> Floats:
    held = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(held, dtype=np.float64)
