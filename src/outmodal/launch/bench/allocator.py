"""Memory that stays with the process, so that loops are compared by their work.

Left alone, glibc returns large blocks to the kernel and gets them back as pages that have to be
cleared. How often depends on where a loop's blocks happen to lie: on one machine loops with steps
of 0.1 s took 1,400 to 6,000 page faults a step, up to 5 % of the time, and one loop about as many
each time.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
_NEVER = -1


def keep_memory() -> bool:
    """Have freed memory kept for the next allocation, in one arena for all threads that start from
    now on, for the rest of this process; False where the C library is not glibc."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER))
    return all([bool(mallopt(option, value)) for option, value in wanted])
