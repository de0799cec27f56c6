"""What every reader of a loader is reading right now, where other processes can see it.

A slot of shared memory for each thread of each reading process: the shard, the key and since when.
The memory outlives a process that is killed, so the board still tells what it was reading.
"""

from __future__ import annotations

import mmap
import struct
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

SLOT = 512
"""Bytes of a slot; longer names are cut."""

_HEAD = struct.Struct("<IdHH")  # process id, since when, bytes of the shard's name, of the key
_ROOM = SLOT - _HEAD.size

_boards: weakref.WeakKeyDictionary[Board, None] = weakref.WeakKeyDictionary()
_more: weakref.WeakKeyDictionary[Board, weakref.WeakMethod[Callable[[], str]]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True)
class Entry:
    """What one reader does.

    Attributes:
        worker: Number of the loader worker.
        thread: Number of the thread in it.
        pid: Process.
        shard, key: What it reads; "" where that is not known yet.
        seconds: For how long.
    """

    worker: int
    thread: int
    pid: int
    shard: str
    key: str
    seconds: float

    def __str__(self) -> str:
        sample = f", sample '{self.key}'" if self.key else ""
        return (
            f"reader {self.worker}.{self.thread} (process {self.pid}): {self.shard}{sample}, "
            f"for {self.seconds:.1f} s"
        )


class Slot:
    """The place of one reader. Only that reader writes to it."""

    def __init__(self, memory: mmap.mmap, offset: int, pid: int) -> None:
        self._memory, self._offset, self._pid = memory, offset, pid

    def reading(self, shard: str, key: str = "") -> None:
        """Note that the reader begins with a shard, or with a sample in it."""
        name = shard.encode("utf-8", "replace")[-_ROOM // 2 :]
        what = key.encode("utf-8", "replace")[: _ROOM // 2]
        head = _HEAD.pack(self._pid, time.monotonic(), len(name), len(what))
        start = self._offset
        self._memory[start : start + len(head) + len(name) + len(what)] = head + name + what

    def idle(self) -> None:
        """Note that the reader does nothing."""
        self._memory[self._offset : self._offset + _HEAD.size] = bytes(_HEAD.size)


class Board:
    """Slots of `workers` processes with `threads` threads each.

    Made before the processes are forked, which share its memory.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self._workers, self._threads = workers, threads
        self._memory = mmap.mmap(-1, max(1, workers * threads) * SLOT)
        _boards[self] = None

    def slot(self, worker: int, thread: int, pid: int) -> Slot:
        """The place of one reader."""
        return Slot(self._memory, (worker * self._threads + thread) * SLOT, pid)

    def entries(self, worker: int | None = None) -> list[Entry]:
        """What readers do that are not idle, of one worker or of all; the longest first."""
        now = time.monotonic()
        found = []
        for number in range(self._workers * self._threads):
            raw = self._memory[number * SLOT : (number + 1) * SLOT]
            pid, since, name, key = _HEAD.unpack_from(raw)
            place = divmod(number, self._threads)
            if not pid or worker not in (None, place[0]):
                continue
            at = _HEAD.size
            shard = raw[at : at + name].decode("utf-8", "replace")
            what = raw[at + name : at + name + key].decode("utf-8", "replace")
            found.append(Entry(*place, pid, shard, what, max(0.0, now - since)))
        return sorted(found, key=lambda entry: -entry.seconds)

    def explain(self, more: Callable[[], str]) -> None:
        """Add to `report` what the method `more` returns, as long as its object lives."""
        _more[self] = weakref.WeakMethod(more)


def _known() -> list[Board]:
    """The boards that there are: a copy made in one step, as other threads make boards."""
    return [board for found in _boards.keyrefs() if (board := found()) is not None]


def readings() -> str:
    """What all readers of this process's loaders do."""
    return "\n".join(str(entry) for board in _known() for entry in board.entries())


def report() -> str:
    """What all readers of this process's loaders do, and the stacks of their workers."""
    parts = [readings()]
    for board in _known():
        more = _more[board]() if board in _more else None
        if more is not None:
            parts.append(more())
    return "\n".join(part for part in parts if part)
