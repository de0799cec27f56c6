"""The engine's input: time spent waiting, micro-batches, the random state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError
from outmodal.train import feed as feed_module
from outmodal.train.feed import Steps

SPEC = StreamSpec("all", "train", (), 6)


class Slow:
    """Gives numbered batches, each of which takes `seconds` of a clock."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self.asked: list[tuple[int, int, int]] = []

    def epoch(
        self, specs: Sequence[StreamSpec], epoch: int, start_step: int, steps: int
    ) -> Iterator[dict[str, Batch]]:
        self.asked.append((specs[0].batch, start_step, steps))
        for number in range(start_step, steps):
            self._clock[0] += self._seconds
            torch.rand(1)
            index = torch.tensor([number])
            yield {"all": Batch(index, index, {}, {}, index > 0)}

    def full_pass(self, spec: StreamSpec) -> Iterator[Batch]:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only moves when it is told to."""
    now = [100.0]
    monkeypatch.setattr(feed_module.time, "monotonic", lambda: now[0])
    assert time.monotonic() == 100.0
    return now


def test_waiting_is_the_share_of_the_time_since_it_was_last_asked(clock: list[float]) -> None:
    steps = Steps(Slow(clock, 1.0), 1)
    for number, _ in enumerate(steps.of([SPEC], 0, 0, 4)):
        clock[0] += 3.0 if number < 2 else 1.0  # the step itself
        if number in (1, 3):
            assert steps.waiting() == pytest.approx(25.0 if number == 1 else 50.0)
    assert steps.waited == pytest.approx(4.0)
    clock[0] += 5.0
    assert steps.waiting() == 0.0


def test_a_step_comes_in_pieces_of_the_same_samples(clock: list[float]) -> None:
    feed = Slow(clock, 0.0)
    got = list(Steps(feed, 3).of([SPEC], 0, 2, 4))
    assert feed.asked == [(2, 6, 12)]
    assert [[int(piece["all"].index) for piece in micro] for micro in got] == [
        [6, 7, 8],
        [9, 10, 11],
    ]
    with pytest.raises(UserError, match=r"engine.accumulate=4"):
        list(Steps(feed, 4).of([SPEC], 0, 0, 1))


def test_a_feed_leaves_the_random_state_alone(clock: list[float]) -> None:
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    list(Steps(Slow(clock, 0.0), 1).of([SPEC], 0, 0, 5))
    assert torch.equal(torch.rand(2), want)
