"""The same work on many shards, in this process or in several, each result as it is done."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from outmodal.data.orphans import end_with_parent

R = TypeVar("R")

Progress = Callable[[int, int], None]
"""Called with (done, total) after each piece of work."""


def run_tasks(
    work: Callable[..., R], calls: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, R | None]]:
    """Yield (position in `calls`, result) as each is done.

    Args:
        work: A function of a module, so that other processes find it.
        calls: Its arguments, which can be sent to other processes.
        workers: Processes; 0 works in this one, in order.

    A result is None where its process died: a decoder's C code crashed, or memory ran out. What
    `work` raises is raised here, and nothing further is begun. The processes end with this one,
    however that ends.
    """
    if workers <= 0:
        for position, call in enumerate(calls):
            yield position, work(*call)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])  # imports cost seconds: they are paid once
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
    try:
        jobs: dict[Future[R], int] = {pool.submit(work, *c): n for n, c in enumerate(calls)}
        for job in as_completed(jobs):
            try:
                result: R | None = job.result()
            except BrokenProcessPool:
                result = None
            yield jobs.pop(job), result
    finally:
        pool.shutdown(cancel_futures=True)
