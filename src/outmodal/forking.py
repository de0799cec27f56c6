"""Signals around a fork: what asks a whole group of processes to stop is the parent's business."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a program to stop."""


@contextmanager
def held_back(numbers: Collection[signal.Signals]) -> Iterator[None]:
    """Let signals wait while entered: one that comes between a fork and the child's own settings
    would end it, or be taken for the parent's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_stops_to_parent() -> None:
    """Ignore, in a child, what asks to stop: the parent does so in order and then ends it."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
