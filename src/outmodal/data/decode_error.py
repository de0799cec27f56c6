"""The one error of all decoders, and what the parsers under them raise on broken bytes."""

from __future__ import annotations

import re
import struct
import zlib

_ADDRESS = re.compile(r" <[^<>]* at 0x[0-9a-f]+>")  # the same fault must read the same each time
# What parsers of broken bytes raise, beside the errors of their own libraries.
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class DecodeError(Exception):
    """A member is corrupt, or not what the manifest says. `reason` says how."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def brief(error: BaseException) -> str:
    """Return the first line of a library's message."""
    lines = _ADDRESS.sub("", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
