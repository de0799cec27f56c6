"""Decode threads: order, errors, ends; batches made ahead: order, errors, bounds, ends."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Generator
from functools import partial

import pytest
import torch

from outmodal.data.crew import Crew, ahead


def named(name: str) -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith(name)}


@pytest.fixture(params=["inline", "one", "three"])
def crew(request: pytest.FixtureRequest) -> Generator[Crew, None, None]:
    made = Crew(3 if request.param == "three" else 1, inline=request.param == "inline")
    yield made
    made.close()


def slow(value: int, thread: int) -> int:
    time.sleep(0.002 * (7 - value % 7))
    return value


def test_results_come_in_the_order_of_the_jobs(crew: Crew) -> None:
    pending = [crew.start([partial(slow, 10 * p + n) for n in range(9)]) for p in range(3)]
    assert [p.results() for p in pending] == [[10 * p + n for n in range(9)] for p in range(3)]
    assert crew.start([]).results() == []


def failing(value: int, thread: int) -> int:
    if value in (3, 5):
        time.sleep(0.05 if value == 3 else 0)  # the later one fails first
        raise ValueError(f"job {value}")
    return value


def test_the_first_failure_in_the_order_of_jobs_is_raised(crew: Crew) -> None:
    pending = crew.start([partial(failing, n) for n in range(9)])
    with pytest.raises(ValueError, match="job 3"):
        pending.results()
    assert crew.start([partial(failing, 1)]).results() == [1]


def test_threads_start_with_the_first_job_and_end_with_the_crew() -> None:
    before = named("decode")  # of other tests' crews, which may end meanwhile
    crew = Crew(3)
    assert named("decode") <= before
    crew.start([partial(slow, 1)]).results()
    assert len(named("decode") - before) == 3
    crew.close()
    assert named("decode") <= before


def test_jobs_that_were_not_begun_are_given_up_at_the_end() -> None:
    crew, begun, go = Crew(1), threading.Event(), threading.Event()

    def wait(thread: int) -> int:
        begun.set()
        go.wait()
        return 1

    first, second = crew.start([wait]), crew.start([wait])
    begun.wait()
    ending = threading.Thread(target=crew.close)
    ending.start()
    with pytest.raises(RuntimeError, match="closed"):
        second.results()
    go.set()
    ending.join()
    assert first.results() == [1]


def test_a_forked_process_starts_threads_of_its_own() -> None:
    crew = Crew(2)
    crew.start([partial(slow, 1)]).results()
    child = os.fork()
    if not child:
        try:
            right = crew.start([partial(slow, n) for n in range(5)]).results() == list(range(5))
            os._exit(0 if right else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    crew.close()


def test_torch_keeps_its_threads_outside_and_has_one_inside() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    crew = Crew(2)
    assert crew.start([lambda _: torch.get_num_threads()] * 4).results() == [1] * 4
    assert torch.get_num_threads() == 2
    fresh: list[int] = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [2]
    crew.close()
    torch.set_num_threads(before)


def counting(made: list[int], count: int = 1000) -> Generator[int, None, None]:
    for n in range(count):
        made.append(n)
        yield n


def until(there: Callable[[], bool]) -> None:
    while not there():
        time.sleep(0.001)


def test_no_more_is_made_ahead_than_asked_for() -> None:
    made: list[int] = []
    items = ahead(counting(made), 2)
    assert made == []
    assert next(items) == 0
    until(lambda: len(made) == 3)
    time.sleep(0.05)
    assert made == [0, 1, 2]
    assert [next(items) for _ in range(4)] == [1, 2, 3, 4]


def test_all_items_come_and_then_the_end() -> None:
    assert list(ahead(counting([], 50), 2)) == list(range(50))
    assert list(ahead(counting([], 0), 2)) == []


def broken() -> Generator[int, None, None]:
    yield 1
    raise KeyError("broken")


def test_an_error_comes_behind_the_items_before_it() -> None:
    items = ahead(broken(), 3)
    assert next(items) == 1
    with pytest.raises(KeyError, match="broken"):
        next(items)


def test_the_thread_ends_when_its_iterator_is_abandoned() -> None:
    before = named("batches")
    for close in (True, False):
        items = ahead(counting([]), 2)
        next(items)
        assert len(named("batches") - before) == 1
        if close:
            items.close()  # type: ignore[attr-defined]
        del items
        gc.collect()
        assert named("batches") <= before
