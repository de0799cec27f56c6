"""What the fork server's children do."""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outmodal.data.batch import Batch
from outmodal.data.stream import Loader
from outmodal.errors import StoppedEarly, UserError
from outmodal.train import gather
from outmodal.train.engine import Engine
from tests.train.plans import tiny_plan


def run(job: Mapping[str, Any]) -> int:
    """Run {"call": "MODULE:FUNCTION", ...}, or train {"plan": {...}}; return the exit code."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    if "file_size" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"], job["file_size"]))
    if "persistent_below" in job:
        from outmodal.train import deepspeed_setup

        deepspeed_setup.PERSISTENT_BELOW = job["persistent_below"]
    if "record" in job:
        _record(job["record"])
    if "stop_at" in job:
        _stop_at(job["stop_at"])
    try:
        if "call" in job:
            module, name = job["call"].split(":")
            getattr(importlib.import_module(module), name)(job)
        else:
            _train(job["plan"])
        gather.close_world()
    except (UserError, StoppedEarly) as error:
        if not error.quiet:
            sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _stop_at(step: int) -> None:
    """Let the last rank get SIGTERM, twice, in the middle of optimizer step `step` (from 1)."""
    original = Engine._step

    def stepping(self: Engine, *args: Any) -> Any:
        last = gather.world().rank == gather.world().size - 1
        if self.at.step == step - 1 and last:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    Engine._step = stepping  # type: ignore[method-assign]


def _train(sections: Mapping[str, Any]) -> None:
    from outmodal.train.run import train

    train(tiny_plan(Path(sections["out"]), **{k: v for k, v in sections.items() if k != "out"}))


def _record(file: str) -> None:
    """Append to `file` which samples this rank gets in each step, as JSON lines."""
    original = Loader.open_epoch

    def recording(self: Loader, specs: Any, **keys: Any) -> Iterator[dict[str, Batch]]:
        batches = original(self, specs, **keys)
        with Path(file).open("a", encoding="utf-8") as out:
            for step, parts in enumerate(batches, keys.get("start_step", 0)):
                rows = {name: batch.index.tolist() for name, batch in parts.items()}
                line = {"epoch": keys["epoch"], "step": step, "rows": rows}
                text = json.dumps({**line, "rank": gather.world().rank}, separators=(",", ":"))
                out.write(f"\n{text}\n")  # begins a line: a killed rank may have left a part of one
                out.flush()
                yield parts

    Loader.open_epoch = recording  # type: ignore[method-assign,assignment]
