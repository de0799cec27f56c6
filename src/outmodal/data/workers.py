"""Loader workers: processes that run feeds, kept alive between epochs with their caches."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import SimpleQueue
from typing import TypeVar, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from outmodal.data.batch import Batch
from outmodal.data.feed import Feed
from outmodal.data.samples import Reader
from outmodal.data.skips import SkipRecord
from outmodal.errors import UserError

T = TypeVar("T")

AHEAD = 2
"""Steps that each worker prepares ahead."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Item:
    """What a worker hands over for one step.

    Attributes:
        batches: stream name -> this worker's rows; empty after a failure.
        skips: Corrupt samples that it met since its last item.
        failure: Message of a UserError that ended its feed, else None.
    """

    batches: dict[str, Batch] = field(default_factory=dict)
    skips: list[SkipRecord] = field(default_factory=list)
    failure: str | None = None


class WorkerPool:
    """`count` processes that run one feed each at a time.

    They are forked when first needed, and inherit the reader; each keeps a cache of its own for
    as long as the pool lives. A pool that is not closed is closed when the program exits.

    Args:
        reader: What each worker reads with; its ledger only collects.
        count: Number of processes.
    """

    def __init__(self, reader: Reader, count: int) -> None:
        self._count = count
        context = multiprocessing.get_context("fork")
        self._feeds: list[SimpleQueue[Feed]] = [context.SimpleQueue() for _ in range(count)]
        self._loader: DataLoader[Item] | None = DataLoader(
            _Work(reader, self._feeds),
            batch_size=None,
            num_workers=count,
            collate_fn=_as_it_is,
            worker_init_fn=_settle if _in_main_thread() else _ignore_signals,
            multiprocessing_context=context,
            generator=torch.Generator(),  # else each epoch would draw from the global generator
            persistent_workers=True,
            prefetch_factor=AHEAD,
        )
        self._items: _MultiProcessingDataLoaderIter | None = None
        self._runs = 0

    def run(self, feeds: Sequence[Feed]) -> Iterator[Item]:
        """Start one feed in each worker and return their items in turn: worker 0's first, worker
        1's first, ..., worker 0's second. What an earlier run has not yielded is given up."""
        if self._loader is None:
            raise RuntimeError("the loader is closed")
        started = self._items is None
        self._items = cast(_MultiProcessingDataLoaderIter, iter(self._loader))
        if started:
            _close_at_exit(self)
        for queue, feed in zip(self._feeds, feeds, strict=True):
            queue.put(feed)  # after iter(): it has the workers started, or reset, and waiting
        self._runs += 1
        return self._until_done(self._runs)

    def _until_done(self, run: int) -> Iterator[Item]:
        while run == self._runs and self._items is not None:
            item = next(self._items, None)
            if item is None:
                return
            yield item
        raise RuntimeError("a new epoch or pass was begun before this one ended")

    def close(self) -> None:
        """End the workers. The pool cannot be used again."""
        items, self._items, self._loader = self._items, None, None
        if items is not None:
            # Its destructor would do this, but a traceback that is alive keeps it from running.
            items._shutdown_workers()
            for worker in items._workers:
                if worker.is_alive():  # it hangs in a read, and does not heed SIGTERM
                    worker.kill()


def _close_at_exit(pool: WorkerPool) -> None:
    """Close the pool before torch and multiprocessing clean up when the program exits: they end
    workers by SIGTERM, which ours ignore, and would wait for ever."""
    reference = weakref.ref(pool)

    def close() -> None:
        if (alive := reference()) is not None:
            alive.close()

    atexit.register(close)
    weakref.finalize(pool, atexit.unregister, close)


class _Work(IterableDataset[Item]):
    """The worker's side: wait for a feed, then run it."""

    def __init__(self, reader: Reader, feeds: Sequence[SimpleQueue[Feed]]) -> None:
        self._reader, self._feeds = reader, feeds

    def __iter__(self) -> Iterator[Item]:
        info = get_worker_info()
        assert info is not None, "only loader workers iterate over this"
        feed = self._feeds[info.id].get()
        return self._items(feed)

    def _items(self, feed: Feed) -> Iterator[Item]:
        ledger = self._reader.ledger
        try:
            for batches in feed.run(self._reader):
                yield Item(batches, ledger.drain())
        except UserError as error:
            yield Item(skips=ledger.drain(), failure=str(error))


def _as_it_is(item: T) -> T:
    return item


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _settle(worker: int) -> None:
    """End with the process that started this one, however that ends: workers that outlive a
    killed rank would wait for ever. Linux ties this to the thread that forks: only the main one."""
    _ignore_signals(worker)
    with contextlib.suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _ignore_signals(_worker: int) -> None:
    """Leave signals to the main process: it stops at a step's end and then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
