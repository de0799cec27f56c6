"""`outmodal` for tests: a run that waits at a given step, so that faults come where they should.

Beside the file HOLD.hold, which holds the step, ranks keep HOLD.asked, a line for each signal that
one has heard, and HOLD.saving while a checkpoint is being written; HOLD.keep makes that wait.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from outmodal.launch.cli import main
from outmodal.train.checkpoint import CheckpointStore
from outmodal.train.engine import Engine
from outmodal.train.signals import StopRequest

HOLD = "TEST_HOLD"
"""Names a file with the number of steps after which to wait until the file changes."""


def _held_at(path: Path) -> int:
    try:
        return int(path.read_text("utf-8"))
    except OSError:
        return sys.maxsize


def hold(path: Path) -> None:
    """Make every step wait, every save mark its beginning and wait, and every signal be noted."""
    step, save, note = Engine._step, CheckpointStore.save, StopRequest._note

    def stepping(self: Engine, *args: Any) -> Any:
        while self.at.step >= _held_at(path):
            time.sleep(0.02)
        return step(self, *args)

    def saving(self: CheckpointStore, *args: Any) -> Any:
        path.with_suffix(".saving").touch()
        while path.with_suffix(".keep").exists():
            time.sleep(0.02)
        done = save(self, *args)
        path.with_suffix(".saving").unlink()
        return done

    def noting(self: StopRequest, *args: Any) -> None:
        env = os.environ
        attempt = env.get("SLURM_RESTART_COUNT") or "0"
        with path.with_suffix(".asked").open("a", encoding="utf-8") as file:
            file.write(f"{env['SLURM_JOB_ID']} {attempt} {env['RANK']}\n")
        note(self, *args)

    StopRequest._note = noting  # type: ignore[method-assign]
    Engine._step = stepping  # type: ignore[method-assign]
    CheckpointStore.save = saving  # type: ignore[method-assign]


if __name__ == "__main__":
    hold(Path(os.environ[HOLD]))
    sys.exit(main())
