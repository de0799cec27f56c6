"""Run checks of Triton kernels in a child process, in Triton's interpreter on the CPU.

TRITON_INTERPRET is read when Triton itself is imported, which other tests of this process may have
done without it. So the checks live in `cases_*.py`, which pytest collects only where it is pointed
at them, and a test of this process points a child at them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(cases: str, *, interpret: bool = True, **env: str) -> str:
    """Output of pytest on tests/models/kernels/`cases`; fails with it where a check fails."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    settings.pop("TRITON_INTERPRET", None)
    if interpret:
        settings["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-x", str(HERE / cases)]
    done = subprocess.run(
        command,
        env=settings,
        cwd=HERE.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
