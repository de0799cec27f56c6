"""A folder that one process fills for one request, and that a later one goes on with.

OUT/WORK/request.json    what was asked for; it stays
OUT/WORK/...             what else a resume needs, until the end
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outmodal.data.cache import write_atomic
from outmodal.data.manifest import MANIFEST
from outmodal.data.orphans import wait_for_orphans
from outmodal.errors import UserError

_REQUEST = "request.json"

_held: set[int] = set()  # handles with this process's locks


def _after_fork() -> None:
    """Leave the locks to the parent: else a child would keep them when the parent is killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def writing(out: Path, what: str) -> Iterator[None]:
    """Turn a failure of the file system into a UserError that names the path.

    Args:
        out: Folder that is filled.
        what: What it will be, "the data set".
    """
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"cannot write {what} {out}{place}: {error.strerror or error}; free space or "
            "choose another folder, and run the same command again: finished shards are kept"
        ) from error


@contextmanager
def claimed(out: Path, work: str, request: Mapping[str, Any]) -> Iterator[None]:
    """Hold `out` for one request, until the end of the block or of the process.

    Args:
        out: Folder; made if it is not there.
        work: Name of the folder inside it that records the request.
        request: Everything that decides the bytes, in JSON values.

    Raises:
        UserError: It holds something else or the result of another request, or is in use.
    """
    records = out / work
    if not (records / _REQUEST).exists():
        _refuse_foreign(out, work)
    records.mkdir(parents=True, exist_ok=True)
    handle = os.open(records, os.O_RDONLY)
    _held.add(handle)
    try:
        _lock(handle, out)
        wait_for_orphans(out)
        _compare(out, records / _REQUEST, json.loads(json.dumps(request)))
        yield
    finally:  # gives the lock back; so does the end of the process
        if handle in _held:
            _held.remove(handle)
            fcntl.flock(handle, fcntl.LOCK_UN)  # also where a child has it
            os.close(handle)


def _refuse_foreign(out: Path, work: str) -> None:
    """Refuse a folder that holds something which no request put there."""
    if not out.is_dir():
        return
    found = sorted(entry.name for entry in out.iterdir() if entry.name != work)
    if MANIFEST in found:
        raise UserError(
            f"{out} holds a data set, and there is no record of how it was built; "
            "choose another folder, or remove this one"
        )
    if found:
        raise UserError(
            f"{out} is not empty (it holds '{found[0]}'); choose a new or an empty folder"
        )


def _lock(handle: int, out: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another process is building {out}; wait until it is done, or choose another folder"
        ) from None


def _compare(out: Path, file: Path, request: dict[str, Any]) -> None:
    """Write a new request, or compare it with the one that was begun here."""
    if not file.exists():
        write_atomic(file, f"{json.dumps(request, indent=2)}\n".encode())
        return
    try:
        begun = json.loads(file.read_bytes())
    except ValueError:
        begun = None
    if not isinstance(begun, dict):
        raise UserError(f"{file} is damaged; remove {out} to build it again")
    changes = [
        f"{key} was {begun.get(key)!r} and is now {request.get(key)!r}"
        for key in sorted({*begun, *request})
        if begun.get(key) != request.get(key)
    ]
    if changes:
        raise UserError(
            f"{out} was built with other settings: {'; '.join(changes)}; "
            "use the same settings, choose another folder, or remove this one"
        )
