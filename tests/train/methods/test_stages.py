"""Which stretch of a run a schedule covers."""

from __future__ import annotations

import pytest

from outmodal.train.methods.base import Stage, scheduled

PLAIN = [Stage("a", 2), Stage("b", 3)]
ANEW = [Stage("a", 2, anew=True), Stage("b", 3), Stage("c", 1, anew=True)]


@pytest.mark.parametrize("epoch", range(5))
def test_one_schedule_unless_a_stage_begins_anew(epoch: int) -> None:
    assert scheduled(PLAIN, epoch) == (0, 5)


def test_a_stage_that_begins_anew_ends_the_schedule_before_it() -> None:
    assert [scheduled(ANEW, e) for e in range(6)] == [(0, 5)] * 5 + [(5, 6)]
    assert [scheduled(ANEW[:1], e) for e in range(2)] == [(0, 2)] * 2
