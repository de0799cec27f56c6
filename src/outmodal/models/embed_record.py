"""What lies beside the features while they are made: the request, and a record of each shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from outmodal.base import Config
from outmodal.data.cache import write_atomic
from outmodal.data.manifest import ShardInfo
from outmodal.data.skips import SkipRecord
from outmodal.models.reading import sha256_file

WORK = ".embed"


class ShardRecord(Config):
    """What is known of a finished shard.

    Attributes:
        source: sha256 of the shard that was read.
        shard: The shard that was written.
        skips: Corrupt inputs of this shard.
    """

    source: str
    shard: ShardInfo
    skips: tuple[dict[str, Any], ...]

    @staticmethod
    def of(source: ShardInfo, shard: ShardInfo, skips: Sequence[SkipRecord]) -> ShardRecord:
        """Make the record of a shard that is complete on the disk."""
        return ShardRecord(
            source=source.sha256,
            shard=shard,
            skips=tuple(asdict(skip) for skip in skips),
        )


def read_record(out: Path, shard: str) -> ShardRecord:
    """Return the record of a finished shard."""
    return ShardRecord.model_validate_json(_file(out, shard).read_bytes())


def kept_record(out: Path, source: ShardInfo) -> ShardRecord | None:
    """Return the record of a shard that is finished, whole, and of this source; else None."""
    try:
        record = read_record(out, source.file)
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
    work = out / WORK
    for leftover in (*work.glob("*.tar.*"), *work.glob(".*.partial"), *out.glob(".*.partial")):
        leftover.unlink(missing_ok=True)  # a half written record is in two of the lists


def _file(out: Path, shard: str) -> Path:
    return out / WORK / f"{shard}.json"
