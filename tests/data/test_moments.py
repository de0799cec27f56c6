"""Moments of a stream, in parts and in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from outmodal.data import moments as moments_module
from outmodal.data.moments import Moments

RNG = np.random.default_rng(3)


def of(rows: NDArray[np.float64], cuts: list[int]) -> Moments:
    """Moments of `rows`, each stretch in an accumulator of its own, put together."""
    whole = Moments(rows.shape[1])
    for part in np.split(rows, sorted(cuts)):
        one = Moments(rows.shape[1])
        one.add(part)
        whole.merge(one)
    return whole


@given(
    cuts=st.lists(st.integers(0, 50), max_size=6),
    offset=st.sampled_from([0.0, 1.0, -3e3, 1e8]),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_parts_give_the_moments_of_the_whole(cuts: list[int], offset: float, scale: float) -> None:
    rows = np.random.default_rng(len(cuts)).normal(size=(50, 3)) * scale + offset
    found = of(rows, cuts)
    size = abs(offset) + scale
    assert found.count == 50
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-12 * size)
    np.testing.assert_allclose(found.std, rows.std(0), rtol=1e-6, atol=1e-12 * size)
    np.testing.assert_array_equal(found.low, rows.min(0))
    np.testing.assert_array_equal(found.high, rows.max(0))


def test_blocks_and_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "_BLOCK", 7)
    pixels = RNG.integers(0, 256, (40, 3), dtype=np.uint8)
    found = Moments(3)
    found.add(pixels, 1 / 255)
    np.testing.assert_allclose(found.mean, pixels.mean(0) / 255)
    np.testing.assert_allclose(found.std, pixels.std(0) / 255)


def test_nothing_is_nothing() -> None:
    found = Moments(2)
    found.merge(Moments(2))
    found.add(np.zeros((0, 2)))
    assert found.as_json() == {"count": 0}
