"""The folder of a run: who writes it, what it was started with, whether it is done."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from outmodal.base import Config
from outmodal.data.cache import write_atomic
from outmodal.errors import UserError
from outmodal.train.folderlock import FolderLock, writing
from outmodal.train.together import on_main

FREE_KEYS = frozenset(
    {
        "out",
        "method.path",  # where its code lies; method.sha256 is of the code itself
        "data.workers",
        "data.threads",
        "data.remote",
        "data.cache_mb",
        "data.max_skips",
        "engine.strategy",
        "engine.log_every",
        "engine.checkpoint_every",
        "engine.async_checkpoint",
        "engine.keep",
        "engine.keep_every",
        "engine.threads",
        "engine.device",
        "engine.timeout",
        "engine.hang_minutes",
        "engine.nonfinite_budget",
    }
)
"""Keys that may change when a run goes on: they decide where and how (or how patiently), not
what."""

CODE = "method.py"
"""Copy of a method's code in the folder of a run, where it comes from outside of the package."""


class RunFolder:
    """RUN/ with its lock, configuration and result.

    All ranks make one; only the main process touches the disk, and its mistakes are raised on
    every rank.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        self._lock: FolderLock | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            UserError: Another process holds it (the message names it), or it cannot be written.
        """
        on_main(self._take)
        try:
            yield
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def check_held(self) -> None:
        """Raise UserError where another process took the folder over: it would be wrong to write
        into it. Does nothing on ranks that do not hold it."""
        if self._lock is not None:
            self._lock.check()

    def start(
        self, config_text: str, untouched: Collection[str] = (), code: bytes | None = None
    ) -> None:
        """Write config.yaml, or compare it with the one that is there.

        Args:
            config_text: The whole configuration.
            untouched: See `changed_keys`.
            code: Of a method from outside of the package; a copy is kept.

        Raises:
            UserError: A key that decides the result was changed.
        """
        on_main(lambda: self._configure(config_text, untouched, code))

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

        def write() -> None:
            with writing(self.root):
                write_atomic(self.root / "result.json", f"{text}\n".encode())

        on_main(write)

    def _take(self) -> None:
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.root)

    def _configure(self, text: str, untouched: Collection[str], code: bytes | None) -> None:
        path = self.root / "config.yaml"
        if path.is_file():
            changed = changed_keys(path.read_text("utf-8"), text, untouched)
            if changed:
                raise UserError(
                    f"run {self.root} was started with other values: {'; '.join(changed)}. Use "
                    "the same values to go on, or another folder (--out) for a new run"
                )
        with writing(self.root):
            if code is not None:
                write_atomic(self.root / CODE, code)
            write_atomic(path, text.encode())


def changed_keys(old: str, new: str, untouched: Collection[str] = ()) -> list[str]:
    """Describe the keys, other than the free ones, in which two YAML texts differ.

    Args:
        old, new: Whole configurations.
        untouched: Keys of `new` that have their defaults (see `untouched_keys`). An older version
            did not know some of them; a new key's default does what was done before it came.
    """
    before = _flat(yaml.safe_load(old))
    return [
        _change(key, was, now) if key in before else f"{key} is new, with {now!r}"
        for key, was, now in differences(old, new)
        if not _within(key, FREE_KEYS) and (key in before or not _within(key, untouched))
    ]


def _change(key: str, was: object, now: object) -> str:
    if key == "method.sha256" and was and now:
        return (
            f"the code of method.path has changed (sha256 was {str(was)[:12]}..., is now "
            f"{str(now)[:12]}...; {CODE} in the run's folder is a copy of what it was)"
        )
    return f"{key} was {was!r}, is now {now!r}"


def untouched_keys(value: object, prefix: str = "") -> set[str]:
    """Dotted keys of a configuration, or of its sections by name, that have their defaults.

    A key stands for everything in it.
    """
    if isinstance(value, Mapping):
        inner = dict(value)
    elif isinstance(value, tuple) and any(isinstance(v, Config) for v in value):
        inner = {str(i): v for i, v in enumerate(value)}
    elif isinstance(value, Config):
        fields = type(value).model_fields
        inner = {name: getattr(value, name) for name in fields}
        default = {n: f.get_default(call_default_factory=True) for n, f in fields.items()}
        same = {name for name in inner if name != "name" and inner[name] == default[name]}
        rest = {name: held for name, held in inner.items() if name not in same}
        return {prefix + name for name in same} | untouched_keys(rest, prefix)
    else:
        return set()
    return {k for name, held in inner.items() for k in untouched_keys(held, f"{prefix}{name}.")}


def _within(key: str, outer: Collection[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[: n + 1]) in outer for n in range(len(parts)))


def differences(old: str, new: str) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) wherever two YAML texts differ, None for keys of one only."""
    a, b = _flat(yaml.safe_load(old)), _flat(yaml.safe_load(new))
    return [(k, a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]


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
