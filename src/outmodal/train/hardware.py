"""What this process uses of its machine, cheaply: for TensorBoard only, as it differs by run."""

from __future__ import annotations

import os
import resource
import sys
import time

import torch

_PER_MIB = 1024 if sys.platform != "darwin" else 2**20  # ru_maxrss counts KiB, or bytes on macOS


class Usage:
    """Memory, and processor time since the last reading."""

    def __init__(self) -> None:
        self._last = (time.monotonic(), _cpu_seconds())

    def read(self) -> dict[str, float]:
        """Return "host_MiB" and, on an accelerator, "gpu_MiB" (most so far), and "cpu_cores":
        processor seconds a second of this process and of its children that have ended."""
        now, used = time.monotonic(), _cpu_seconds()
        spent = max(now - self._last[0], 1e-9)
        values = {
            "host_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PER_MIB,
            "cpu_cores": (used - self._last[1]) / spent,
        }
        self._last = (now, used)
        if torch.cuda.is_available():
            values["gpu_MiB"] = torch.cuda.max_memory_allocated() / 2**20
        return values


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
