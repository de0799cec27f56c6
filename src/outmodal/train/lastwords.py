"""What is left to say when a lone process is stuck inside a library that holds Python's lock.

No thread of it can run, and no other rank is there to write what it knows. Its timer (see
`watchdog`) writes the stacks and ends it; a child that was forked before, and has done nothing
but wait for its end, then writes the report.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from outmodal.forking import STOPS, held_back, leave_stops_to_parent


class LastWords:
    """Has `say` called in a child if this process ends before `cancel`.

    Args:
        say: Must need nothing but files and the memory that the processes share.
    """

    def __init__(self, say: Callable[[], None]) -> None:
        hears, self._link = os.pipe()
        with held_back(STOPS):  # until the child ignores them
            self._child = os.fork()
            if not self._child:
                leave_stops_to_parent()
        if self._child:
            os.close(hears)
            return
        try:
            _wait(hears, self._link, say)
        finally:
            os._exit(0)

    def cancel(self) -> None:
        """End the child in silence; it may have been killed."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._link, b"x")
        os.close(self._link)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._child, 0)


def _wait(hears: int, other: int, say: Callable[[], None]) -> None:
    os.close(other)
    for name in os.listdir("/proc/self/fd"):  # files, sockets and devices of the parent
        if int(name) > 2 and int(name) != hears:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own
    if not os.read(hears, 1):
        say()
