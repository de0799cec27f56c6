"""A run's checkpoints, from all ranks to the disk and back."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from outmodal.errors import UserError
from outmodal.train import checkpoint, gather, rng, snapshot
from outmodal.train.checkpoint import CheckpointStore, Snapshot
from outmodal.train.ema import Ema
from outmodal.train.engine_config import EngineConfig
from outmodal.train.methods.base import Method
from outmodal.train.runfolder import RunFolder
from outmodal.train.state import Layout
from outmodal.train.together import on_all, on_main
from outmodal.train.watchdog import Watchdog
from outmodal.train.writer import CheckpointWriter, Written

_PATIENCE = 20.0  # seconds between looks at a write: no collective waits for a disk


class Saver:
    """Saves and restores what a run needs to go on. Every method is collective.

    Attributes:
        saved: Step of the newest checkpoint that is written or being written.
    """

    def __init__(
        self,
        method: Method,
        layout: Layout,
        ema: Ema | None,
        config: EngineConfig,
        folder: RunFolder,
        watchdog: Watchdog,
    ) -> None:
        self._method, self._layout, self._ema = method, layout, ema
        self._config, self._watchdog = config, watchdog
        self.store = CheckpointStore(folder.checkpoints, config.keep, config.keep_every)
        self._writer = CheckpointWriter(
            self.store,
            config.async_checkpoint,
            folder.root / "checkpoints.jsonl",
            folder.check_held,
        )
        limits = [m for m in (config.timeout, config.hang_minutes) if m]
        self._patience = min(_PATIENCE, *(60 * minutes / 4 for minutes in limits))
        self.saved: int | None = None

    def save(self, step: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """Take a snapshot of this step and begin to write it, unless there is one.

        Args:
            step: Optimizer steps done.
            state: Gives what state.json holds; called on the main process.
        """
        if self.saved == step:
            return
        begin = time.monotonic()
        self.wait()
        between = time.monotonic()
        tensors = snapshot.take(self._method, self._layout, self._ema, gather.is_main())
        taken = time.monotonic()

        def write() -> None:
            held = Snapshot(tensors, {**state(), "written_by": self._written_by()})
            self._writer.begin(step, held, between - begin, taken - between)

        on_main(write)
        self.saved = step
        self._watchdog.beat(f"saved step {step}")

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            UserError: A checkpoint could not be written.
        """
        before: int | None = -1
        while before is not None:
            now: int | None = on_main(lambda: self._writer.wait(self._patience))
            if now != before:
                self._watchdog.beat("writing a checkpoint")
            before = now

    @property
    def failed(self) -> bool:
        """A checkpoint could not be written, as far as this process knows."""
        return self._writer.problem is not None

    def check(self) -> None:
        """Raise on the main process what went wrong."""
        self._writer.check()

    def written(self) -> list[Written]:
        """Checkpoints that the main process has finished since the last call."""
        return self._writer.written()

    def restore(self, seed: int) -> Mapping[str, Any] | None:
        """Load the newest checkpoint that verifies; return its state, None where there is none.

        Raises:
            UserError: No checkpoint verifies, or one of the ranks cannot read it.
        """
        on_main(self.store.prepare)
        found = on_main(lambda: str(self.store.newest(repair=True) or ""))
        if not found:
            return None
        held: Snapshot = on_all(lambda: _read(Path(found)))
        snapshot.put_back(held.tensors, self._method, self._layout, self._ema)
        self.saved = int(held.state["step"])
        rng.restore(held.tensors["rng"], seed, self.saved)
        return {**held.state, "path": found}

    def close(self) -> None:
        """Let the write that goes on come to its end."""
        self._writer.close()

    def _written_by(self) -> dict[str, Any]:
        return {
            "strategy": self._config.strategy,
            "processes": gather.world().size,
            **{p: metadata.version(p) for p in ("torch", "accelerate", "deepspeed")},
        }


def _read(path: Path) -> Snapshot:
    try:
        return checkpoint.read(path, snapshot.PARTS)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} cannot be read on {socket.gethostname()} ({error}): let every "
            "node see the same run folder, then run the same command again"
        ) from error
