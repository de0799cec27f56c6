"""Progress on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from outmodal.closing import Closing

_EVERY = 20.0  # seconds between lines where stderr is no terminal


class Progress(Closing):
    """Counts steps, with the time that is left. Silent on all but the main process.

    Args:
        total: Steps of the whole run.
        done: Steps that an earlier start of the run has done.
        shown: False makes it silent.
    """

    def __init__(self, total: int, done: int = 0, shown: bool = True) -> None:
        self._total, self._first, self._done, self._shown = total, done, done, shown
        self._begin = self._last = time.monotonic()
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="step", file=sys.stderr, leave=False)

    def advance(
        self, label: str, values: Mapping[str, float], waiting: Callable[[], float] | None = None
    ) -> None:
        """One more step.

        Args:
            label: What is being done.
            values: Shown where a line is due.
            waiting: Gives the percentage of the time since its last call that data were waited
                for; shown with the values.
        """
        self._done += 1
        if self._bar is not None:
            self._bar.set_description_str(label, refresh=False)
            if values:
                self._bar.set_postfix_str(_text(values) + _waited(waiting), refresh=False)
            self._bar.update(1)
        elif self._shown and time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            rest = _text(values) + _waited(waiting)
            self.say(f"{label}: step {self._done}/{self._total}, {self._left()} {rest}")

    def reach(self, label: str, done: int, total: int) -> None:
        """`done` of `total` are done, of something whose size was not known before."""
        self._done, self._total = done - 1, total
        if self._bar is not None:
            self._bar.total, self._bar.n = total, max(0, done - 1)
        self.advance(label, {})

    def say(self, text: str, stream: TextIO | None = None) -> None:
        """One line that stays."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.write(text, file=stream or sys.stderr)
        else:
            (stream or sys.stderr).write(text.rstrip() + "\n")

    def _left(self) -> str:
        spent = time.monotonic() - self._begin
        seconds = spent / max(1, self._done - self._first) * (self._total - self._done)
        minutes, rest = divmod(round(seconds), 60)
        return f"about {minutes // 60}:{minutes % 60:02d}:{rest:02d} left"

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()


def _waited(waiting: Callable[[], float] | None) -> str:
    return "" if waiting is None else f" data {waiting():.0f}%"


def _text(values: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in values.items())
