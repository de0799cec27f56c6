"""Being asked to stop: SIGTERM and SIGUSR1 set a flag that the engine reads between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from outmodal.errors import StoppedEarly

_KINDS = (signal.SIGTERM, signal.SIGUSR1)
_program = False  # this process ends with its command


class StopRequest:
    """While entered, the signals set `asked` instead of killing the process.

    More of them change nothing: a launcher may forward one twice, and a save goes on through
    all. In a thread that is not the main one Python cannot catch signals; nothing is caught.
    Entering it once more inside changes nothing either.

    Attributes:
        asked: A signal came.
        early: Nothing has been done that could be lost: a signal ends the program at once, with
            StoppedEarly, so that a job is put back into the queue as after a checkpoint.
    """

    def __init__(self, early: bool = False) -> None:
        self.asked, self.early = False, early
        self._depth = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._note) for kind in _KINDS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            stopped = _program and isinstance(error, StoppedEarly)  # and there will be no more
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_IGN if stopped else handler)
            self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if self.early and first:
            raise StoppedEarly(
                "stopped on request before the first step: there was nothing to save. Run the "
                "same command again to go on"
            )


def ends_after_stop() -> None:
    """Say that this process does nothing more once it was stopped: from the end of the
    `StopRequest` on signals are ignored then, and a second one does not turn 75 into a death."""
    global _program
    _program = True


def ignore_more() -> None:
    """Let nothing interrupt the program's end, now that its exit code is decided."""
    if threading.current_thread() is threading.main_thread():
        for kind in _KINDS:
            signal.signal(kind, signal.SIG_IGN)
