"""The same work on many shards."""

from __future__ import annotations

import os

import pytest

from outmodal.data.tasks import run_tasks
from outmodal.errors import UserError


def square(number: int) -> int:
    if number == 7:
        os._exit(1)
    if number < 0:
        raise UserError("negative")
    return number * number


def test_results_come_with_their_positions() -> None:
    calls = [(number,) for number in (3, 1, 2)]
    assert list(run_tasks(square, calls, 0)) == [(0, 9), (1, 1), (2, 4)]
    assert sorted(run_tasks(square, calls, 2)) == [(0, 9), (1, 1), (2, 4)]
    assert list(run_tasks(square, [], 2)) == []


def test_a_process_that_dies_gives_none() -> None:
    found = dict(run_tasks(square, [(7,), (7,)], 1))
    assert found == {0: None, 1: None}


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_come_through(workers: int) -> None:
    with pytest.raises(UserError, match="negative"):
        list(run_tasks(square, [(-1,), (2,)], workers))
