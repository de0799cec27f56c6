"""Checkpoints written beside the training: the step pays for the copy, a thread for the disk.

One write at a time: whoever saves again while one goes on waits for it first, so that no more
than one snapshot is ever held and every planned checkpoint exists. A write that failed is noted
in `problem`, for all ranks to stop together at the next step.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from outmodal.errors import UserError
from outmodal.train.checkpoint import CheckpointStore, Snapshot


@dataclass(frozen=True)
class Written:
    """What one checkpoint cost.

    Attributes:
        step: Optimizer steps done.
        background: Written by the thread.
        bytes: On the disk.
        wait_s: Seconds that the step waited for the checkpoint before this one.
        snapshot_s: Seconds of copying everything to the CPU.
        write_s: Seconds of writing, hashing and renaming.
    """

    step: int
    background: bool
    bytes: int
    wait_s: float
    snapshot_s: float
    write_s: float

    @property
    def stall_s(self) -> float:
        """Seconds that training stood still."""
        return self.wait_s + self.snapshot_s + (0.0 if self.background else self.write_s)


class CheckpointWriter:
    """Writes snapshots into a store; only the main process has work for one.

    Args:
        store: Where they go.
        background: Write in a thread; False writes in `begin`.
        log: File that gets a line of JSON for each checkpoint: times depend on the machine, so
            they have no place in metrics.jsonl.
        allowed: Called before and after each write; raises UserError where it must not happen.
    """

    def __init__(
        self,
        store: CheckpointStore,
        background: bool,
        log: Path,
        allowed: Callable[[], None] = lambda: None,
    ) -> None:
        self.store, self.background = store, background
        self.problem: Exception | None = None
        self._log, self._allowed = log, allowed
        self._thread: threading.Thread | None = None
        self._done: list[Written] = []

    def begin(self, step: int, snapshot: Snapshot, wait_s: float, snapshot_s: float) -> None:
        """Start to write a checkpoint; the one before must have ended.

        Args:
            step: Optimizer steps done.
            snapshot: CPU tensors that nobody changes any more.
            wait_s, snapshot_s: What it has cost so far.

        Raises:
            UserError: It is written here, and the file system refuses it.
        """
        assert self._thread is None, "wait() comes before the next begin()"
        cost = Written(step, self.background, 0, wait_s, snapshot_s, 0.0)
        if not self.background:
            self._write(snapshot, cost)
            return
        self._thread = threading.Thread(
            target=self._guarded, args=(snapshot, cost), name=f"checkpoint-{step}"
        )
        self._thread.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for the write that goes on.

        Args:
            seconds: At most so long; None waits for the end.

        Returns:
            None once nothing is being written, else the bytes that are on the disk so far.

        Raises:
            UserError: The write failed; the message names the checkpoint and the remedy.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return self.store.partial_bytes()
            self._thread = None
        self.check()
        return None

    def check(self) -> None:
        """Raise what was noted of a write that failed."""
        if self.problem is not None:
            raise self.problem

    def written(self) -> list[Written]:
        """Checkpoints that were finished since the last call."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Wait for the write that goes on; never raises: its outcome is on the disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _guarded(self, snapshot: Snapshot, cost: Written) -> None:
        try:
            self._write(snapshot, cost)
        except Exception as error:  # noqa: BLE001 (handed to the training thread, which raises it)
            self.problem = error

    def _write(self, snapshot: Snapshot, cost: Written) -> None:
        self._allowed()
        begin = time.monotonic()
        path = self.store.save(cost.step, snapshot, self._allowed)
        size = sum(file.stat().st_size for file in path.iterdir())
        cost = replace(cost, bytes=size, write_s=time.monotonic() - begin)
        self._note(cost)
        self._done = [*self._done, cost]

    def _note(self, cost: Written) -> None:
        row = {**asdict(cost), "stall_s": cost.stall_s}
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        try:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(shown) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self._log}: {error.strerror or error}. The checkpoints are "
                "intact: free space or lift the quota, then run the same command again"
            ) from error
