"""What no reader may do, for the test of the guard."""

from __future__ import annotations

import os
import time


def attempt(_target: str, data: bytes) -> tuple[str, str]:
    """Do the harm that `data` names."""
    if data == b"exit":
        os._exit(3)
    if data == b"hang":
        time.sleep(600)
    if data == b"memory":
        os.sched_yield()
        bytearray(b"x") * (2 << 30)
    return ("broken", "RuntimeError") if data == b"error" else ("fine", "")
