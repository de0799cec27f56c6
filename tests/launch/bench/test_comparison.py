"""Figures of loops in turns, against what they were made of."""

from __future__ import annotations

import numpy as np
import pytest

from outmodal.launch.bench.comparison import compared, excess
from outmodal.launch.bench.timing import Spent


def _turns(wall: list[float], cpu: list[float]) -> list[Spent]:
    return [Spent(*pair) for pair in zip(wall, cpu, strict=True)]


def test_each_clock_is_compared_round_by_round() -> None:
    fast = _turns([1.0, 2.0, 4.0], [10.0, 20.0, 40.0])
    slow = _turns([1.1, 2.6, 4.8], [11.0, 24.0, 60.0])
    wall = excess(slow, fast, wall=True)
    assert wall.median == pytest.approx(0.2)
    cpu = excess(slow, fast, wall=False)
    assert cpu.median == pytest.approx(0.2)
    assert wall.interval is cpu.interval is None  # three turns hold it too seldom
    wider = _turns([1.3, 2.2, 5.6], [14.0, 22.0, 48.0])
    both = excess([*slow, *wider], [*fast, *fast], wall=False)
    assert both.interval == pytest.approx((0.1, 0.5))


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for rounds in (6, 12, 40):
        held, trials = 0, 800
        for _ in range(trials):
            noise = rng.lognormal(np.log(1.03), 0.02, rounds).tolist()
            found = excess(_turns(noise, noise), _turns([1.0] * rounds, [1.0] * rounds), wall=True)
            assert found.interval is not None
            held += found.interval[0] <= 0.03 <= found.interval[1]
        assert 0.94 < held / trials < 0.99


def test_the_engine_is_compared_with_the_bare_loop_and_the_recipe_with_the_engine() -> None:
    times = {"bare": 1.0, "again": 1.01, "plain": 1.02, "recipe": 1.02 * 1.01}
    spent = {name: _turns([t] * 3, [2 * t] * 3) for name, t in times.items()}
    found = compared(spent, 100, wall=True)
    assert found["overhead"] == pytest.approx(0.02)
    assert found["synergy_overhead"] == pytest.approx(0.01)
    assert found["control"] == pytest.approx(0.01)
    assert found["runs"]["bare"] == {"images_per_s": 100, "images_per_cpu_s": 50}
    del spent["plain"]
    found = compared(spent, 100, wall=True)
    assert found["overhead"] == pytest.approx(1.02 * 1.01 - 1)
    assert found["synergy_overhead"] is None
    assert set(found["intervals"]) == {"overhead", "control"}
