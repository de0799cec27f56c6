"""Threads of a reading process: a crew that decodes rows side by side, and batches made ahead.

Decoders let go of Python's lock while they work, so threads share one process's cores, cache and
memory, and hand their rows over without copying. They are started when first needed: a process
that forks loader workers has none by then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
Job = Callable[[int], T]
"""Gets the number of the thread that runs it."""

PATIENCE = 10.0
"""Seconds that an end waits for threads in the middle of something; then they are left behind."""


class Pending(Generic[T]):
    """Jobs under way. Their results come in the order of the jobs."""

    def __init__(self, jobs: Sequence[Job[T]]) -> None:
        self._jobs = jobs
        self._results: dict[int, T] = {}
        self._errors: dict[int, BaseException] = {}
        self._left = len(jobs)
        self._lock = threading.Lock()
        self._done = threading.Event()
        if not jobs:
            self._done.set()

    def run(self, number: int, thread: int) -> None:
        """Run one job, unless an earlier one failed: then nobody wants its result."""
        try:
            if not any(failed < number for failed in list(self._errors)):
                self._results[number] = self._jobs[number](thread)
        except BaseException as error:  # noqa: BLE001 - raised where the results are asked for
            self._errors[number] = error
        self._finish()

    def give_up(self, number: int) -> None:
        """Note that a job will not be run."""
        self._errors[number] = RuntimeError("the loader is closed")
        self._finish()

    def _finish(self) -> None:
        with self._lock:
            self._left -= 1
            if not self._left:
                self._done.set()

    def results(self) -> list[T]:
        """Wait for all jobs; raise what the first that failed has raised."""
        self._done.wait()
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._results[number] for number in range(len(self._jobs))]


class Crew:
    """Runs jobs in `count` threads of its own, or `inline`: in the caller, one after the other.

    Attributes:
        inline: May be switched at any time.
    """

    def __init__(self, count: int, *, inline: bool = False) -> None:
        self.count, self.inline = count, inline
        self._queue: SimpleQueue[tuple[Pending[Any], int] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._owner = 0
        self._lock = threading.Lock()

    def start(self, jobs: Sequence[Job[T]]) -> Pending[T]:
        """Begin with jobs, which must not wait for each other."""
        pending = Pending(jobs)
        if self.inline:
            for number in range(len(jobs)):
                pending.run(number, 0)
            return pending
        self._hire()
        for number in range(len(jobs)):
            self._queue.put((pending, number))
        return pending

    def _hire(self) -> None:
        """Start the threads, in a forked process its own."""
        with self._lock:
            if self._owner == os.getpid():
                return
            self._owner, self._queue = os.getpid(), SimpleQueue()
            threads, ready = torch.get_num_threads(), threading.Barrier(self.count + 1)
            self._threads = [
                threading.Thread(
                    target=_work, args=(self._queue, n, ready), name=f"decode-{n}", daemon=True
                )
                for n in range(self.count)
            ]
            for thread in self._threads:
                thread.start()
            ready.wait()
            torch.set_num_threads(threads)

    def close(self) -> None:
        """End the threads; jobs that are not begun are given up."""
        with self._lock:
            if self._owner != os.getpid():
                return
            self._owner = 0
            while True:
                try:
                    job = self._queue.get_nowait()
                except Empty:
                    break
                if job is not None:
                    job[0].give_up(job[1])
            for _ in self._threads:
                self._queue.put(None)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._threads = []


def _work(
    queue: SimpleQueue[tuple[Pending[Any], int] | None], number: int, ready: threading.Barrier
) -> None:
    # Else each of these threads would have as many threads again for torch's loops. The second
    # call holds for this thread, which the first makes known to torch, and for threads that are
    # new to torch, until the crew's owner has made it again.
    torch.get_num_threads()
    torch.set_num_threads(1)
    ready.wait()
    while (job := queue.get()) is not None:
        job[0].run(job[1], number)
        del job


_END = object()


def ahead(source: Generator[T, None, None], depth: int) -> Iterator[T]:
    """Yield what `source` yields, which a thread runs up to `depth` items ahead.

    What `source` raises is raised here, behind the items before it. The thread ends with this
    iterator, however that ends.
    """
    out: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    room, stop = threading.Semaphore(depth), threading.Event()
    thread = threading.Thread(
        target=_produce, args=(source, out, room, stop), name="batches", daemon=True
    )
    thread.start()
    try:
        while True:
            item, error = out.get()
            if error is not None:
                raise error
            if item is _END:
                return
            room.release()
            yield item
            del item
    finally:
        stop.set()
        room.release()
        thread.join(PATIENCE)


def _produce(
    source: Generator[T, None, None],
    out: SimpleQueue[tuple[Any, BaseException | None]],
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    try:
        while room.acquire() and not stop.is_set():
            item: Any = next(source, _END)
            out.put((item, None))
            if item is _END:
                break
            del item
    except BaseException as error:  # noqa: BLE001 - raised where the items are asked for
        out.put((None, error))
    finally:
        source.close()
