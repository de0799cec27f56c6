"""Being asked to stop: SIGTERM and SIGUSR1 set a flag that the engine reads between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_KINDS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """While entered, the signals set `asked` instead of killing the process.

    More of them change nothing: a launcher may forward one twice, and a save goes on through
    all. In a thread that is not the main one Python cannot catch signals; nothing is caught.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._note) for kind in _KINDS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
