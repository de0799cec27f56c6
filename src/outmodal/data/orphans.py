"""Processes that end with the one that started them, and folders that wait until they have.

A program that is killed outright cannot stop its processes: each of them watches it and ends by
itself, a moment later. Whoever repeats the command meanwhile waits for that moment, so that no two
processes write the same shard.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def end_with_parent() -> None:
    """End this process, whatever it does, as soon as the one that started it is gone."""
    threading.Thread(target=_watch, name="parent", daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Note that this process writes into a folder. One whose parent is gone ends instead."""
    with _locked(folder, fcntl.LOCK_SH):
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)
        yield


def wait_for_orphans(folder: Path) -> None:
    """Wait until no process is `at_work` in a folder whose owner, which started them, is gone."""
    with _locked(folder, fcntl.LOCK_EX):
        pass


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, kind)
        try:
            yield
        finally:  # closing is not enough: a child that was forked meanwhile has it open too
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)
