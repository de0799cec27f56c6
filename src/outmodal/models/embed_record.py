"""What lies beside the features while they are made: the request, and a record of each shard."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from outmodal.base import Config
from outmodal.data.cache import write_atomic
from outmodal.data.manifest import MANIFEST, ShardInfo
from outmodal.data.skips import SkipRecord
from outmodal.errors import UserError
from outmodal.models.reading import sha256_file

WORK = ".embed"
_REQUEST = "request.json"


class ShardRecord(Config):
    """What is known of a finished shard.

    Attributes:
        source: sha256 of the shard that was read.
        shard: The shard that was written.
        digests: Modality -> one digest of the input a sample, None where it has none.
        skips: Corrupt inputs of this shard.
    """

    source: str
    shard: ShardInfo
    digests: dict[str, tuple[str | None, ...]]
    skips: tuple[dict[str, Any], ...]

    @staticmethod
    def of(
        source: ShardInfo,
        shard: ShardInfo,
        digests: Mapping[str, tuple[str | None, ...]],
        skips: Sequence[SkipRecord],
    ) -> ShardRecord:
        """Make the record of a shard that is complete on the disk."""
        return ShardRecord(
            source=source.sha256,
            shard=shard,
            digests=dict(digests),
            skips=tuple(asdict(skip) for skip in skips),
        )


def kept_record(out: Path, source: ShardInfo) -> ShardRecord | None:
    """Return the record of a shard that is finished, whole, and of this source; else None."""
    try:
        record = ShardRecord.model_validate_json(_file(out, source.file).read_bytes())
        digest = sha256_file(out / source.file)
    except (FileNotFoundError, ValidationError):
        return None
    same = record.source == source.sha256 and record.shard.sha256 == digest
    return record if same else None


def write_record(out: Path, record: ShardRecord) -> None:
    """Write the record of a shard that is complete on the disk."""
    write_atomic(_file(out, record.shard.file), record.model_dump_json().encode())


def finish(out: Path) -> None:
    """Remove the records and what a killed process left half written; the request stays."""
    for record in (out / WORK).glob("*.tar.json"):
        record.unlink()
    for partial in (*out.glob(".*.partial"), *(out / WORK).glob(".*.partial")):
        partial.unlink()


def _file(out: Path, shard: str) -> Path:
    return out / WORK / f"{shard}.json"


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn a failure of the file system into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"cannot write the features {out}{place}: {error.strerror or error}; free space or "
            "choose another folder, and run the same command again: finished shards are kept"
        ) from error


@contextmanager
def claimed(out: Path, request: Mapping[str, Any]) -> Iterator[None]:
    """Hold `out` for one request; UserError if it belongs to something else, or is in use."""
    work = out / WORK
    if not (work / _REQUEST).exists():
        _refuse_foreign(out)
    work.mkdir(parents=True, exist_ok=True)
    handle = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing {out}; wait until it is done, or choose another folder"
            ) from None
        _compare(out, json.loads(json.dumps(request)))
        yield
    finally:
        os.close(handle)  # gives the lock back; so does the end of the process


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds something which no embedding put there."""
    found = sorted(e.name for e in out.iterdir() if e.name != WORK) if out.is_dir() else []
    if found:
        what = "a data set" if MANIFEST in found else f"'{found[0]}'"
        raise UserError(f"{out} holds {what} already: choose a new or an empty folder")


def _compare(out: Path, request: dict[str, Any]) -> None:
    """Write a new request, or compare it with the one that was begun here."""
    file = out / WORK / _REQUEST
    if not file.exists():
        write_atomic(file, f"{json.dumps(request, indent=2)}\n".encode())
        return
    try:
        begun = json.loads(file.read_bytes())
    except ValueError:
        begun = None
    if not isinstance(begun, dict):
        raise UserError(f"{file} is damaged: remove {out} and start again")
    changed = [k for k in sorted({*begun, *request}) if begun.get(k) != request.get(k)]
    if changed:
        was = "; ".join(f"{k} was {begun.get(k)!r} and is now {request.get(k)!r}" for k in changed)
        raise UserError(
            f"{out} was made with other settings: {was}; use the same settings, choose another "
            "folder, or remove this one"
        )
