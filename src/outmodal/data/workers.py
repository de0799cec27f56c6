"""Loader workers: processes that run feeds, kept alive between epochs with their caches.

    this process                             worker 0, 1, ...
    "run this feed, number 7"   -- link -->  reads; two steps ahead
    "one more step, number 7"   -- link -->
                                <-- link --  step: what it holds, and a file of memory with it

Each worker has a link of its own, so one that dies breaks nothing but its link, and is noticed at
once. Tensors travel in anonymous files of memory, which need no space in /dev/shm and vanish with
the last process that holds them.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from outmodal.data.batch import Batch
from outmodal.data.board import Board
from outmodal.data.feed import Feed
from outmodal.data.parcel import receive, send
from outmodal.data.samples import Reader
from outmodal.data.skips import SkipRecord
from outmodal.errors import UserError
from outmodal.forking import STOPS, held_back, leave_stops_to_parent

AHEAD = 2
"""Steps that each worker prepares ahead."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_SHOW_STACKS = signal.SIGUSR2
_STACK_WAIT = 2.0  # seconds for a worker to show its stacks
_END_WAIT = 30.0  # seconds for a worker whose link broke to end: a busy system takes its time


class LostWorker(UserError):
    """A loader worker ended on its own: killed, or by a crash of a library."""

    exit_code = 1


@dataclass(frozen=True)
class Item:
    """What a worker hands over for one step.

    Attributes:
        batches: stream name -> this worker's rows; empty after a failure and at the end.
        skips: Corrupt samples that it met since its last item.
        failure: Message of a UserError that ended its feed, else None.
        crash: Traceback of any other error that did.
        last: The feed has ended.
    """

    batches: dict[str, Batch] = field(default_factory=dict)
    skips: list[SkipRecord] = field(default_factory=list)
    failure: str | None = None
    crash: str | None = None
    last: bool = False


@dataclass(frozen=True)
class _Start:
    run: int
    feed: Feed


@dataclass(frozen=True)
class _More:
    run: int


@dataclass
class _Worker:
    process: BaseProcess
    link: Connection
    stacks: int  # a file of memory that it writes its stacks to


class WorkerPool:
    """`count` processes that run one feed each at a time.

    They are forked when first needed, and inherit the reader; each keeps a cache of its own for
    as long as the pool lives. A pool that is not closed is closed when the program exits.

    Args:
        reader: What each worker reads with; its ledger only collects.
        count: Number of processes.
        board: Where the reader notes what it reads.
    """

    def __init__(self, reader: Reader, count: int, board: Board) -> None:
        self._reader, self._count, self._board = reader, count, board
        self._workers: list[_Worker] = []
        self._runs = 0
        self._closed = False
        self._lock = threading.Lock()  # of the list, which a thread that reports reads too
        board.explain(self.stacks)

    def run(self, feeds: Sequence[Feed]) -> Iterator[Item]:
        """Start one feed in each worker and return their items in turn: worker 0's first, worker
        1's first, ..., worker 0's second. What an earlier run has not yielded is given up."""
        if self._closed:
            raise RuntimeError("the loader is closed")
        if not self._workers:
            self._fork()
        self._runs += 1
        for number, feed in enumerate(feeds):
            self._send(number, _Start(self._runs, feed))
        return self._until_done(self._runs)

    def _until_done(self, run: int) -> Iterator[Item]:
        open_feeds = list(range(self._count))
        while open_feeds:
            for number in tuple(open_feeds):
                if run != self._runs or self._closed:
                    raise RuntimeError("a new epoch or pass was begun before this one ended")
                item = self._receive(number, run)
                if item.last:
                    open_feeds.remove(number)
                else:
                    self._send(number, _More(run))
                if item.batches or item.skips or item.failure or item.crash:
                    yield item

    def _receive(self, number: int, run: int) -> Item:
        """Wait for the next item of a worker; LostWorker as soon as any of them has ended."""
        link = self._workers[number].link
        sentinels = {w.process.sentinel: n for n, w in enumerate(self._workers)}
        while True:
            ready = wait([link, *sentinels])
            if link in ready:
                try:
                    came, item = receive(link)
                    assert isinstance(item, Item)
                except (EOFError, OSError):
                    raise self._lost(number) from None
                if came == run:
                    return item
                continue
            raise self._lost(next(sentinels[s] for s in ready if s in sentinels))

    def _send(self, number: int, message: _Start | _More) -> None:
        try:
            self._workers[number].link.send(message)
        except OSError:
            raise self._lost(number) from None

    def _lost(self, number: int) -> LostWorker:
        """What is to be said of a worker that has ended."""
        process = self._workers[number].process
        process.join(_END_WAIT)
        code = process.exitcode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        reading = "; ".join(str(entry) for entry in self._board.entries(number))
        hint = (
            "if the machine ran out of memory, lower data.workers, data.threads or data.cache_mb"
            if code == -signal.SIGKILL
            else "if it crashed in that sample, look at it with `outmodal data check`"
        )
        return LostWorker(
            f"loader worker {number} (process {process.pid}) {how} while it read "
            f"{reading or 'nothing'}: {hint}, and run the same command again"
        )

    def stacks(self) -> str:
        """The stacks of all threads of all workers, also of those that hang in a library."""
        with self._lock:  # files of its own: `close` may close the others at any moment
            held = [(worker.process, os.dup(worker.stacks)) for worker in self._workers]
        try:
            return "\n".join(_stacks_of(n, *one) for n, one in enumerate(held))
        finally:
            for _, stacks in held:
                os.close(stacks)

    def close(self) -> None:
        """End the workers. The pool cannot be used again."""
        self._closed = True
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.link.close()
        deadline = time.monotonic() + 1.0
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():  # in a long read; it has nothing to lose
                worker.process.kill()
                worker.process.join()
            os.close(worker.stacks)

    def _fork(self) -> None:
        context = multiprocessing.get_context("fork")
        settled = threading.current_thread() is threading.main_thread()
        with held_back({_SHOW_STACKS, *STOPS}):  # until a worker has set itself up
            self._fork_all(context, settled)
        _close_at_exit(self)

    def _fork_all(self, context: ForkContext, settled: bool) -> None:
        for number in range(self._count):
            ours, theirs = context.Pipe(duplex=True)
            stacks = _memory("stacks")
            others = [worker.link for worker in self._workers]
            process = context.Process(
                target=_serve,
                args=(number, theirs, [ours, *others], self._reader, stacks, settled),
                name=f"loader worker {number}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours, stacks))


def _memory(name: str) -> int:
    return os.memfd_create(f"outmodal-{name}")


def _stacks_of(number: int, process: BaseProcess, stacks: int) -> str:
    title = f"--- loader worker {number} (process {process.pid})"
    if not process.is_alive():
        return f"{title} has ended"
    os.ftruncate(stacks, 0)
    os.lseek(stacks, 0, os.SEEK_SET)
    try:
        os.kill(int(process.pid or 0), _SHOW_STACKS)
    except ProcessLookupError:  # it ended just now, and another thread has noted it
        return f"{title} has ended"
    end, size = time.monotonic() + _STACK_WAIT, 0
    while time.monotonic() < end:
        time.sleep(0.05)
        before, size = size, os.fstat(stacks).st_size
        if size and size == before:
            break
    text = os.pread(stacks, size, 0).decode("utf-8", "replace")
    return f"{title}\n{text or 'does not answer: stopped, or waiting for a disk'}"


def _close_at_exit(pool: WorkerPool) -> None:
    """Close the pool before multiprocessing cleans up when the program exits: it ends workers by
    SIGTERM, which ours ignore, and would wait for ever."""
    reference = weakref.ref(pool)

    def close() -> None:
        if (alive := reference()) is not None:
            alive.close()

    atexit.register(close)
    weakref.finalize(pool, atexit.unregister, close)


# --- the worker's side -----------------------------------------------------------------------


def _serve(
    number: int,
    link: Connection,
    others: Sequence[Connection],
    reader: Reader,
    stacks: int,
    settled: bool,
) -> None:
    """Run the feeds that come, one after the other, until the link is closed."""
    for other in others:
        other.close()
    leave_stops_to_parent()
    if settled:
        _die_with_parent()
    faulthandler.register(_SHOW_STACKS, file=stacks, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {_SHOW_STACKS, *STOPS})
    torch.set_num_threads(1)
    reader.settle(number)
    with contextlib.suppress(EOFError, OSError):
        start = _next_start(link)
        while True:
            start = _run(link, reader, start)


def _run(link: Connection, reader: Reader, start: _Start) -> _Start:
    """Send one feed's items as they are asked for; return the feed that comes next."""
    credit, items = AHEAD, _items(reader, start.feed)
    while True:
        while not credit or link.poll():
            message: Any = link.recv()
            if isinstance(message, _Start):
                items.close()
                return message
            credit += message.run == start.run
        item = next(items)
        send(link, start.run, item)
        credit -= 1
        if item.last:
            return _next_start(link)


def _next_start(link: Connection) -> _Start:
    while not isinstance(message := link.recv(), _Start):
        pass
    return message


def _items(reader: Reader, feed: Feed) -> Any:
    ledger = reader.ledger
    try:
        for batches in feed.run(reader):
            yield Item(batches, ledger.drain())
    except UserError as error:
        yield Item(skips=ledger.drain(), failure=str(error), last=True)
    except Exception:  # noqa: BLE001 - raised in the main process
        yield Item(skips=ledger.drain(), crash=traceback.format_exc(), last=True)
    else:
        yield Item(skips=ledger.drain(), last=True)


def _die_with_parent() -> None:
    """End with the process that started this one, however that ends: workers that outlive a
    killed rank would wait for ever. Linux ties this to the thread that forks: only the main one."""
    with contextlib.suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
