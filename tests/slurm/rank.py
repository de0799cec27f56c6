"""`outmodal` for tests: a run that waits at a given step, so that faults come where they should."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from outmodal.launch.cli import main
from outmodal.train.checkpoint import CheckpointStore
from outmodal.train.engine import Engine

HOLD = "TEST_HOLD"
"""Names a file with the number of steps after which to wait until the file changes."""


def _held_at(path: Path) -> int:
    try:
        return int(path.read_text("utf-8"))
    except OSError:
        return sys.maxsize


def hold(path: Path) -> None:
    """Make every step wait, and every save mark its beginning and take half a second."""
    step, save = Engine._step, CheckpointStore.save

    def stepping(self: Engine, *args: Any) -> Any:
        while self.at.step >= _held_at(path):
            time.sleep(0.02)
        return step(self, *args)

    def saving(self: CheckpointStore, *args: Any) -> Any:
        path.with_suffix(".saving").touch()
        time.sleep(0.5)
        done = save(self, *args)
        path.with_suffix(".saving").unlink()
        return done

    Engine._step = stepping  # type: ignore[method-assign]
    CheckpointStore.save = saving  # type: ignore[method-assign]


if __name__ == "__main__":
    hold(Path(os.environ[HOLD]))
    sys.exit(main())
