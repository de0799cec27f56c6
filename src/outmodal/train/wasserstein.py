"""Wasserstein distances between two sets of latents, and the geometric mixing weight alpha*.

Both estimators are of finite samples. The Gaussian one knows means and covariances only: it is
a lower bound of W2 between the distributions that have them (Gelbrich, 1990), up to the error of
the estimated covariances. The sliced one averages over directions, is at most W2, and shrinks with
the dimension: it compares sets of one dimension with each other, not with other estimates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PROJECTIONS = 512
_TINY = 1e-12


def unit_mean_norm(x: Tensor) -> Tensor:
    """Rows [N, d] over their mean length, fp64: sets of different scales become comparable."""
    x = x.double()
    length: Tensor = torch.linalg.vector_norm(x, dim=1).mean()
    return x / length.clamp_min(_TINY)


def shrunk_covariance(x: Tensor) -> Tensor:
    """[d, d] covariance of [N, d], drawn towards a multiple of the identity, fp64.

    The share is that of Ledoit and Wolf (J. Multivariate Analysis, 2004): of N < d rows the plain
    one has no full rank, and its largest eigenvalues are far too large.
    """
    x = x.double()
    count, dim = x.shape
    centred = x - x.mean(dim=0)
    plain = centred.T @ centred / count
    scale = plain.diagonal().mean()
    target = torch.eye(dim, dtype=x.dtype, device=x.device) * scale
    spread = (plain - target).square().sum()
    if float(spread) <= _TINY * float(scale) ** 2:
        return plain
    # sum over rows of |x x' - S|^2 = sum |x|^4 - N |S|^2
    fourth = centred.square().sum(dim=1).square().sum()
    noise = (fourth / count - plain.square().sum()).clamp_min(0) / count
    share = (noise / spread).clamp(max=1.0)
    return (1.0 - share) * plain + share * target


def gaussian_w2(a: Tensor, b: Tensor, *, shrink: bool = True) -> float:
    """W2 between the Gaussians with the means and covariances of two sets.

    W2^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), in fp64.

    Args:
        a, b: [N, d], [M, d].
        shrink: See `shrunk_covariance`; False is the plain covariance (over N).

    Returns:
        The distance, in the units of the rows. NaN where a side has no row.

    Raises:
        ValueError: The sizes d differ.
    """
    _check(a, b)
    if len(a) == 0 or len(b) == 0:
        return float("nan")
    a, b = a.double(), b.double()
    first, second = (shrunk_covariance(x) if shrink else _plain(x) for x in (a, b))
    root = _root(first)
    inner = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    squared = (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * inner
    return float(squared.clamp_min(0).sqrt())


def sliced_w2(a: Tensor, b: Tensor, *, projections: int = PROJECTIONS, seed: int = 0) -> float:
    """Sliced W2: root of the mean, over random directions, of the squared W2 along them.

    Along a direction the optimal coupling is that of the sorted values; sets of different sizes
    are compared exactly, by their quantile functions.

    Args:
        a, b: [N, d], [M, d].
        projections: Directions, uniform on the sphere.
        seed: Of the directions.

    Returns:
        The distance, at most W2 between the two sets. NaN where a side has no row.

    Raises:
        ValueError: The sizes d differ.
    """
    _check(a, b)
    if len(a) == 0 or len(b) == 0:
        return float("nan")
    generator = torch.Generator().manual_seed(seed)
    ways = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    ways = (ways / torch.linalg.vector_norm(ways, dim=0).clamp_min(_TINY)).to(a.device)
    x, y = ((t.double() @ ways).sort(dim=0).values for t in (a, b))
    if len(x) == len(y):
        return float((x - y).square().mean().sqrt())
    steps = torch.cat([torch.arange(1, n + 1, dtype=torch.float64) / n for n in (len(x), len(y))])
    ends = torch.unique(steps)
    widths = ends.diff(prepend=ends.new_zeros(1))
    middle = ends - widths / 2
    x, y = (t[(middle * len(t)).long().clamp(max=len(t) - 1).to(t.device)] for t in (x, y))
    squared = (x - y).square().mean(dim=1)
    return math.sqrt(float((squared * widths.to(squared.device)).sum()))


@dataclass(frozen=True)
class AlphaStar:
    """The mixing weight that brings an interpolation nearest to a reference.

    Attributes:
        value: In 0..1.
        unclipped: The formula's value.
        outside: Whether that lies outside 0..1: then no interpolation is better than both ends.
    """

    value: float
    unclipped: float
    outside: bool


def alpha_star(delta_i: float, delta_j: float, delta_ij: float) -> AlphaStar:
    """alpha* = (1 + (delta_i^2 - delta_j^2) / delta_ij^2) / 2 (Lee and Yoon, ICLR 2025, eq. 4).

    It minimises (1 - a) delta_i^2 + a delta_j^2 - a (1 - a) delta_ij^2, an upper bound of the
    squared distance of the interpolation. It is not the weight of a loss.

    Args:
        delta_i: Distance of the reference to the learner's latents, 0 or more.
        delta_j: Of the reference to the helper's.
        delta_ij: Between the two.

    Returns:
        The weight of the helper; NaN, and outside, where the two coincide.
    """
    if not delta_ij > 0 or not all(map(math.isfinite, (delta_i, delta_j, delta_ij))):
        return AlphaStar(float("nan"), float("nan"), True)
    value = 0.5 * (1.0 + (delta_i**2 - delta_j**2) / delta_ij**2)
    return AlphaStar(min(1.0, max(0.0, value)), value, not 0.0 <= value <= 1.0)


def _plain(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    return centred.T @ centred / len(x)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"sets of vectors of one size, not {tuple(a.shape)} and {tuple(b.shape)}")
