"""Wasserstein estimates against closed forms, exact couplings and each other; alpha* by search."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from outmodal.train.wasserstein import (
    alpha_star,
    gaussian_w2,
    shrunk_covariance,
    sliced_w2,
    unit_mean_norm,
)

SETTINGS = settings(max_examples=25, deadline=None)
SIZES = st.tuples(st.integers(2, 40), st.integers(1, 12), st.integers(0, 10**6))


def rows(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    drawn = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return drawn @ mixing + torch.randn(dim, generator=generator, dtype=torch.float64)


def exact(a: Tensor, b: Tensor) -> float:
    """W2 between two sets of one size, by their optimal assignment."""
    cost = torch.cdist(a, b).square().numpy()
    return math.sqrt(cost[linear_sum_assignment(cost)].mean())


def closed_form(a: Tensor, b: Tensor) -> float:
    """The Gaussian distance of plain moments, by scipy's matrix root."""
    first, second = (np.cov(x.numpy().T, bias=True).reshape(x.shape[1], -1) for x in (a, b))
    root = sqrtm(first)
    middle = np.real(sqrtm(root @ second @ root))
    gap = float((a.mean(0) - b.mean(0)).square().sum())
    return math.sqrt(max(0.0, gap + float(np.trace(np.real(first + second - 2 * middle)))))


@SETTINGS
@given(size=SIZES)
def test_the_gaussian_distance_is_its_closed_form(size: tuple[int, int, int]) -> None:
    _, dim, seed = size
    a, b = rows(60, dim, seed), rows(50, dim, seed + 1)
    assert gaussian_w2(a, b, shrink=False) == pytest.approx(closed_form(a, b), rel=1e-4, abs=1e-5)


@SETTINGS
@given(size=SIZES, scale=st.floats(0.2, 5.0))
def test_of_one_dimension_it_is_means_and_deviations(
    size: tuple[int, int, int], scale: float
) -> None:
    a = rows(size[0], 1, size[2])
    b = scale * a + 3.0
    moved = float((a.mean() - b.mean()) ** 2 + (a.std(unbiased=False) * (scale - 1)) ** 2)
    assert gaussian_w2(a, b) == pytest.approx(math.sqrt(moved), rel=1e-6)
    assert sliced_w2(a, b) == pytest.approx(exact(a, b), rel=1e-6)


@SETTINGS
@given(size=SIZES)
def test_a_set_is_at_0_from_itself_and_a_shift_is_its_length(size: tuple[int, int, int]) -> None:
    a = rows(*size)
    shift = torch.full((size[1],), 0.7, dtype=torch.float64)
    length = 0.7 * math.sqrt(size[1])
    assert gaussian_w2(a, a) == pytest.approx(0.0, abs=1e-5)
    assert sliced_w2(a, a) == 0.0
    assert gaussian_w2(a, a + shift) == pytest.approx(length, rel=1e-4)
    ways = sliced_w2(a, a + shift, projections=4096)
    assert ways == pytest.approx(length / math.sqrt(size[1]), rel=0.15)


@SETTINGS
@given(size=SIZES)
def test_both_are_lower_bounds_of_w2_and_symmetric(size: tuple[int, int, int]) -> None:
    count, dim, seed = size
    a, b = rows(count, dim, seed), rows(count, dim, seed + 1)
    whole = exact(a, b)
    assert sliced_w2(a, b) <= whole * (1 + 1e-9)
    assert gaussian_w2(a, b, shrink=False) <= whole * (1 + 1e-6) + 1e-6
    for distance in (gaussian_w2, sliced_w2):
        assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-5, abs=1e-5)


def test_sets_of_different_sizes_are_compared_by_their_quantiles() -> None:
    a, b = rows(12, 5, 0), rows(8, 5, 1)
    expected = sliced_w2(a.repeat_interleave(2, 0), b.repeat_interleave(3, 0))
    assert sliced_w2(a, b) == pytest.approx(expected, rel=1e-9)
    assert sliced_w2(b, a) == pytest.approx(expected, rel=1e-9)


def test_shrinkage_mends_covariances_of_few_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    dim = 64
    a, b = (torch.randn(48, dim, generator=generator) for _ in range(2))
    covariance = shrunk_covariance(a)
    assert float(torch.linalg.eigvalsh(covariance)[0]) > 0.1
    assert float(covariance.trace()) == pytest.approx(float((a - a.mean(0)).square().sum() / 48))
    far = gaussian_w2(a - a.mean(0), b - b.mean(0), shrink=False)
    assert gaussian_w2(a - a.mean(0), b - b.mean(0)) < 0.35 * far, "both are of one distribution"
    many = torch.randn(20000, 4, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    plain = torch.cov(many.double().T, correction=0)
    torch.testing.assert_close(shrunk_covariance(many), plain, rtol=0.01, atol=0.02)


def test_the_estimator_of_ledoit_and_wolf_is_that_of_scikit_learn() -> None:
    from sklearn.covariance import ledoit_wolf

    x = rows(30, 9, 3)
    expected, _ = ledoit_wolf(x.numpy())
    torch.testing.assert_close(shrunk_covariance(x), torch.from_numpy(expected))


@SETTINGS
@given(size=SIZES, scale=st.floats(1e-3, 1e3))
def test_unit_mean_norm_takes_the_scale_away(size: tuple[int, int, int], scale: float) -> None:
    a = rows(*size)
    unit = unit_mean_norm(scale * a)
    assert float(unit.norm(dim=1).mean()) == pytest.approx(1.0)
    torch.testing.assert_close(unit, unit_mean_norm(a))
    assert not unit_mean_norm(torch.zeros(3, 2)).any()


@SETTINGS
@given(i=st.floats(0, 10), j=st.floats(0, 10), between=st.floats(0.1, 10))
def test_alpha_star_minimises_the_bound(i: float, j: float, between: float) -> None:
    found = alpha_star(i, j, between)
    grid = np.linspace(0, 1, 2001)
    bound = (1 - grid) * i**2 + grid * j**2 - grid * (1 - grid) * between**2
    at = found.value
    best = (1 - at) * i**2 + at * j**2 - at * (1 - at) * between**2
    assert best <= bound.min() + 1e-9
    if abs(abs(i**2 - j**2) - between**2) > 1e-9:
        assert found.outside == (abs(i**2 - j**2) > between**2)
    assert found.value == min(1.0, max(0.0, found.unclipped))
    if not found.outside and i > 0 and j > 0 and abs(i - j) <= between <= i + j:
        share = i / (i + j)
        assert found.value >= share - 1e-9 if i > j else found.value <= share + 1e-9


def test_nothing_is_between_two_sets_that_coincide() -> None:
    found = alpha_star(1.0, 1.0, 0.0)
    assert found.outside
    assert math.isnan(found.value)
    assert math.isnan(gaussian_w2(torch.zeros(0, 3), torch.zeros(2, 3)))
    assert math.isnan(sliced_w2(torch.zeros(2, 3), torch.zeros(0, 3)))
    with pytest.raises(ValueError, match="of one size"):
        sliced_w2(torch.zeros(2, 3), torch.zeros(2, 4))
