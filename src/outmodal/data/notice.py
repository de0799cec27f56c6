"""Things that befall inputs and are handled: counted each time, said once."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class Notice:
    """One such thing, of one transform. A loader worker counts, and speaks, for itself.

    Attributes:
        count: How many inputs of this process it befell.
    """

    def __init__(self) -> None:
        self.count = 0
        self._said = False

    def say(self, message: str) -> None:
        """Log `message` as a warning, unless something was said before."""
        if not self._said:
            log.warning(message)
        self._said = True

    def add(self, message: str) -> None:
        """Count one input, and say so if it is the first."""
        self.count += 1
        self.say(message)
