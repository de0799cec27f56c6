"""The folder of a run: who writes it, what it was started with, whether it is done."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from outmodal.data.cache import write_atomic
from outmodal.errors import UserError
from outmodal.train import gather

FREE_KEYS = frozenset(
    {
        "out",
        "data.workers",
        "data.cache_mb",
        "data.max_skips",
        "engine.strategy",
        "engine.log_every",
        "engine.checkpoint_every",
        "engine.keep",
        "engine.threads",
        "engine.device",
        "engine.timeout",
        "engine.nonfinite_budget",
    }
)
"""Keys that may change when a run goes on: they decide where and how (or how patiently), not
what."""


class RunFolder:
    """RUN/ with its lock, configuration and result.

    All ranks make one; only the main process touches the disk, and its mistakes are raised on
    every rank.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            UserError: Another process holds it (the message names it), or it cannot be written.
        """
        handle: int | None = None

        def take() -> None:
            nonlocal handle
            handle = self._lock()

        on_main(take)
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)

    def start(self, config_text: str) -> None:
        """Write config.yaml, or compare it with the one that is there.

        Raises:
            UserError: A key that decides the result was changed.
        """
        on_main(lambda: self._configure(config_text))

    def result(self) -> dict[str, Any] | None:
        """Return what `finish` wrote: the run is complete; None where it is not."""

        def read() -> dict[str, Any] | None:
            path = self.root / "result.json"
            return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None

        found: dict[str, Any] | None = on_main(read)
        return found

    def finish(self, step: int, metrics: Mapping[str, float]) -> None:
        """Mark the run complete."""
        text = json.dumps({"step": step, "metrics": dict(metrics)}, indent=2, sort_keys=True)
        on_main(lambda: write_atomic(self.root / "result.json", f"{text}\n".encode()))

    def _lock(self) -> int:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {self.root}: {error.strerror or error}; choose "
                "another with --out"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise UserError(
                f"run folder {self.root} is in use by {holder}: wait for it, stop it, or choose "
                "another folder with --out"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return handle

    def _configure(self, text: str) -> None:
        path = self.root / "config.yaml"
        if path.is_file():
            changed = changed_keys(path.read_text("utf-8"), text)
            if changed:
                raise UserError(
                    f"run {self.root} was started with other values: {'; '.join(changed)}. Use "
                    "the same values to go on, or another folder (--out) for a new run"
                )
        write_atomic(path, text.encode())


def changed_keys(old: str, new: str) -> list[str]:
    """Describe the keys, other than the free ones, in which two YAML texts differ."""
    a, b = _flat(yaml.safe_load(old)), _flat(yaml.safe_load(new))
    names = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    return [f"{k} was {a.get(k)!r}, is now {b.get(k)!r}" for k in names if k not in FREE_KEYS]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = dict(enumerate(value)).items()
    else:
        return {prefix.removesuffix("."): value}
    out: dict[str, Any] = {}
    for key, inner in items:
        out |= _flat(inner, f"{prefix}{key}.")
    return out


def on_main(act: Callable[[], Any]) -> Any:
    """Run `act` on the main process; return its JSON-able result, or raise its UserError, on
    every rank. Also a barrier."""
    if gather.is_main():
        try:
            message = [act(), None, False]
        except UserError as error:
            message = [None, str(error), False]
        except BaseException as error:
            gather.broadcast_object([None, f"{type(error).__name__}: {error}", True])
            raise
    else:
        message = []
    answer, problem, fatal = gather.broadcast_object(message)
    if fatal:
        raise RuntimeError(f"the main process failed: {problem}")
    if problem is not None:
        raise UserError(problem)
    return answer
