"""Peak memory of one alternative over its inputs, on a CPU in a process of its own.

Run as a program it takes a problem and the alternative's name in JSON and prints bytes: what other
alternatives left behind in an allocator, or would reuse of it, is nobody's figure then.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from outmodal.launch.bench.kernel_problems import Sizes, make_problem

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(sizes: Sizes, name: str) -> int | None:
    """Most bytes in use during forward and backward beyond the inputs; None if nobody counts.

    On a CPU it is what the process's resident set grew by in a second pass, gradients included.
    """
    if sizes.device == "cpu":
        return _in_process(sizes, name) if _CLEAR.exists() else None
    run = make_problem(sizes, [name]).call(name)
    run()
    torch.cuda.synchronize()
    problem = make_problem(sizes, [name])
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    problem.call(name)()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _in_process(sizes: Sizes, name: str) -> int | None:
    asked = json.dumps(
        {"sizes": dataclasses.asdict(sizes), "name": name, "threads": torch.get_num_threads()}
    )
    done = subprocess.run(
        [sys.executable, "-m", "outmodal.launch.bench.kernel_memory", asked],
        capture_output=True,
        text=True,
        # freed memory goes back to the system at once, so that the resident set is what is in use
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        return None
    return int(done.stdout.split()[-1])


def growth(run: Callable[[], object]) -> int:
    """By how many bytes this process's resident set at most grows while `run` runs."""
    before = _resident("VmRSS")
    _CLEAR.write_text("5")  # the peak starts again from here
    run()
    return max(0, _resident("VmHWM") - before)


def _resident(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main() -> None:
    """Measure what the first argument says."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    problem = make_problem(Sizes(**asked["sizes"]), [asked["name"]])
    run = problem.call(asked["name"])
    run()  # libraries and compilers take memory of their own the first time
    problem.sets[0].forget()
    sys.stdout.write(f"{growth(run)}\n")


if __name__ == "__main__":
    main()
