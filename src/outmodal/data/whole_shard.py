"""What is done with a whole shard at once: its checksum, and a copy of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from outmodal.data.cache import sync_folder
from outmodal.data.store import ShardPlace

_CHUNK = 1 << 20


def hash_shard(place: ShardPlace) -> tuple[str, int]:
    """Return sha256 and bytes of a shard. Raises FileNotFoundError, OSError or StoreError."""
    digest, size = hashlib.sha256(), 0
    with place.open() as file:
        while chunk := file.pread(_CHUNK, size):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def copy_shard(place: ShardPlace, target: Path) -> None:
    """Copy a shard; `target` is there whole, on the disk, or not at all.

    Raises FileNotFoundError, OSError or StoreError.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file, place.open() as source:
            at = 0
            while chunk := source.pread(_CHUNK, at):
                file.write(chunk)
                at += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(target.parent)
