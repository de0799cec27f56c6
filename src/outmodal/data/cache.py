"""Where files that can be made again lie, and how a file is written whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder of everything that outmodal can derive again; it may not exist yet.

    `$OUTMODAL_CACHE` if that is set and not empty, else `~/.cache/outmodal`.
    """
    chosen = os.environ.get("OUTMODAL_CACHE", "")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "outmodal"


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that readers see either the old file or the whole new one.

    The temporary name is drawn, so that processes, threads and machines that derive the same file
    do not write into each other's; the last one wins. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
