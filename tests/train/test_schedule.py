"""The learning rate is a pure function of the step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmodal.train.schedule import ScheduleName, factor

NAMES: tuple[ScheduleName, ...] = ("cosine", "constant", "wsd")


@given(st.integers(1, 2000), st.integers(0, 300), st.sampled_from(NAMES), st.floats(0.0, 1.0))
def test_rises_to_one_then_never_rises(
    total: int, warmup: int, name: ScheduleName, ratio: float
) -> None:
    values = [factor(s, total, warmup, name, ratio) for s in range(total)]
    up, down = values[:warmup], values[warmup:]
    assert up == sorted(up)
    assert all(0.0 < v <= 1.0 for v in up)
    assert down == sorted(down, reverse=True)
    assert all(ratio - 1e-9 <= v <= 1.0 for v in down)
    if down:
        assert down[0] == 1.0


def test_values() -> None:
    assert [factor(s, 100, 4) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factor(52, 100, 4, "cosine", 0.1) == pytest.approx(0.55)
    assert factor(100, 100, 4, "cosine", 0.02) == pytest.approx(0.02)
    assert factor(99, 100, 4, "constant") == 1.0
    assert factor(80, 100, 4, "wsd") == 1.0
    assert factor(90, 100, 4, "wsd", 0.2) == pytest.approx(0.6)


def test_a_warm_up_from_a_given_rate_and_a_cooldown() -> None:
    values = [factor(s, 100, 10, "cosine", 0.1, start=0.001, cooldown=20) for s in range(100)]
    assert values[:11] == pytest.approx([0.001 + 0.0999 * s for s in range(11)])
    assert values[45] == pytest.approx(0.55)
    assert values[80:] == pytest.approx([0.1] * 20)
    assert min(values[10:80]) > 0.1
