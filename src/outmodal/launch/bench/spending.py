"""CPU time of this process and of everything that it has started, also while that runs."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def tree_cpu() -> float:
    """Seconds of user and system time: this process, children that ended, and living descendants.

    Living ones are read from /proc, in steps of 10 ms; the others by getrusage(2).
    """
    own = time.process_time()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own + ended.ru_utime + ended.ru_stime + _living(os.getpid())


def _living(root: int) -> float:
    """Ticks of the descendants, with what their own ended children took."""
    children: dict[int, list[tuple[int, int]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        ticks = sum(int(number) for number in fields[11:15])
        children.setdefault(int(fields[1]), []).append((int(entry.name), ticks))
    total, waiting = 0, [root]
    while waiting:
        for process, ticks in children.get(waiting.pop(), ()):
            total += ticks
            waiting.append(process)
    return total * _TICK
