"""Bootstrap intervals: the law of resamples, whatever way they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from outmodal.train import intervals
from outmodal.train.intervals import Bootstrap, resampled_means, score


def test_a_rate_has_the_binomial_interval() -> None:
    hits = np.r_[np.ones(300), np.zeros(100)]
    found = score("top1", hits)
    assert found is not None
    assert (found.value, found.count) == (0.75, 400)
    spread = (0.75 * 0.25 / 400) ** 0.5
    assert found.low == pytest.approx(0.75 - 1.96 * spread, abs=0.006)
    assert found.high == pytest.approx(0.75 + 1.96 * spread, abs=0.006)
    assert found == score("top1", hits)
    draws = [resampled_means(hits[:, None], 9, np.random.default_rng(s)).tolist() for s in (0, 1)]
    assert draws[0] != draws[1]


def test_the_mean_of_any_numbers() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 900)
    found = score("mse", values, draws=4000)
    assert found is not None
    half = 1.96 * values.std() / 30
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_equal_values_drawn_together_follow_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(1).integers(0, 3, (240, 2)).astype(float)
    together = resampled_means(columns, 6000, np.random.default_rng(2))
    rng = np.random.default_rng(3)
    alone = np.stack([columns[rng.integers(0, 240, 240)].mean(axis=0) for _ in range(6000)])
    np.testing.assert_allclose(together.mean(axis=0), alone.mean(axis=0), atol=0.003)
    np.testing.assert_allclose(np.cov(together.T), np.cov(alone.T), atol=2e-4)


@given(st.integers(1, 60), st.integers(1, 300), st.integers(1, 64))
@settings(max_examples=30, deadline=None)
def test_memory_is_bounded_and_chunks_change_nothing(n: int, draws: int, room: int) -> None:
    values = np.random.default_rng(n).normal(size=(n, 1))
    whole = resampled_means(values, draws, np.random.default_rng(0))
    before = intervals._AT_ONCE
    intervals._AT_ONCE = room
    try:
        parts = resampled_means(values, draws, np.random.default_rng(0))
    finally:
        intervals._AT_ONCE = before
    assert parts.shape == whole.shape == (draws, 1)
    np.testing.assert_allclose(parts, whole, atol=1e-12)


def test_a_ratio_of_what_moves_together_is_certain() -> None:
    below = np.random.default_rng(0).random(200)
    found = Bootstrap().ratio("relative", 3 * below, below)
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))
    alone = Bootstrap().ratio("relative", 3 * below, below[::-1])
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high - alone.low > 0.1
    nothing = Bootstrap().ratio("relative", below, np.zeros(200))
    assert nothing.value != nothing.value
    assert nothing.low is None


def test_the_mean_over_classes() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(4, 600, p=[0.7, 0.2, 0.08, 0.02])
    guess = np.where(rng.random(600) < 0.6, truth, rng.integers(0, 4, 600))
    found = Bootstrap(draws=4000).balanced("mean_per_class", guess == truth, truth)
    assert found.value == pytest.approx(balanced_accuracy_score(truth, guess))
    rows = [rng.integers(0, 600, 600) for _ in range(300)]
    slow = [balanced_accuracy_score(truth[r], guess[r]) for r in rows]
    low, high = np.percentile(slow, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


def test_without_samples_or_draws() -> None:
    assert score("top1", []) is None
    found = Bootstrap(draws=0).mean("top1", [1.0, 0.0])
    assert found is not None
    assert (found.value, found.low, found.count) == (0.5, None, 2)
    assert Bootstrap(draws=0).balanced("b", [1, 0], [0, 0]).low is None
