"""The frame of every builder: shards in parallel, resumable, byte-identical for one request.

    OUT/train-000000.tar, ..., OUT/dataset.json    the data set; the manifest is written last
    OUT/.build/request.json                        what was asked for; it stays
    OUT/.build/train-000000.tar.json               record of a finished shard, until the end
    OUT/.build/staging-*/                          shards being written

A shard is a pure function of the request and of its place, and is made in a fresh process. It
is moved into OUT when it is complete, then its record is written. A build that was killed
keeps every shard whose bytes have the sha256 of its record, and makes the others.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from outmodal.base import Config
from outmodal.data.build.pool import in_fresh_processes
from outmodal.data.cache import write_atomic
from outmodal.data.claim import claimed, writing
from outmodal.data.manifest import (
    MANIFEST,
    Dataset,
    Manifest,
    Modality,
    ShardInfo,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.orphans import at_work
from outmodal.data.shard_writer import ShardWriter, move_shard

WORK = ".build"
"""Folder inside OUT that holds the request, and during a build what a resume needs."""

_WHAT = "the data set"

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in total) at the start and after every shard."""

Add = Callable[[str, Mapping[str, bytes]], None]
"""Takes (key, {suffix: bytes}) of the next sample of a shard."""

Facts = dict[str, dict[str, Any]]
"""Modality -> what a shard found out about its members, in JSON values."""

Watch = Callable[[Facts], None]
Beside = Callable[[Sequence[Facts]], Mapping[str, bytes]]


class ShardJob(Protocol):
    """Everything one process needs to make one shard. It is sent there, so it can be pickled."""

    def write(self, add: Add) -> Facts:
        """Add the shard's samples in order, and return what the manifest needs to know of them.

        Raises UserError for a source that cannot be read.
        """
        ...


class Source(Protocol):
    """Where the samples of a build come from."""

    def job(self, split: str, start: int, stop: int) -> ShardJob:
        """Return the job for the samples [start, stop) of a split; called in the parent."""
        ...

    def modalities(self, facts: Sequence[Facts]) -> dict[str, Modality]:
        """Return the manifest's modalities, given the facts of all shards in order."""
        ...


@dataclass(frozen=True)
class BuildPlan:
    """What to build.

    Attributes:
        name: Name of the data set.
        classes: Class names in the order of the labels.
        splits: Split -> number of samples at most: a job may leave some out.
        samples_per_shard: Samples in every shard but the last of a split.
        request: Everything that decides the bytes, in JSON values. A build goes on only where
            this is equal.
        source: Makes the jobs.
        wnids, subset: As in the manifest.
        watch: Called with the facts of each shard once it is there; it ends the build by raising.
        beside: Called with the facts of all shards in order: other files to write, by name.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, int]
    samples_per_shard: int
    request: Mapping[str, Any]
    source: Source
    wnids: tuple[str, ...] | None = None
    subset: tuple[int, ...] | None = None
    watch: Watch = lambda facts: None
    beside: Beside = lambda facts: {}


class ShardRecord(Config):
    """What is known of a finished shard; lies beside the others in OUT/.build."""

    shard: ShardInfo
    facts: Facts


@dataclass(frozen=True)
class _Slot:
    """One shard of the plan: the samples [start, stop) of a split."""

    split: str
    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Order:
    """What is sent to the process that makes one shard."""

    out: Path
    file: str
    job: ShardJob


def build_dataset(
    plan: BuildPlan, out: Path, workers: int = 0, progress: Progress | None = None
) -> Dataset:
    """Build the data set of `plan` in the folder `out`, or go on with a build begun there.

    Args:
        plan: What to build.
        out: Folder; made if it is not there. A finished data set of the same request is
            opened and returned.
        workers: Processes at a time; 0 is one a CPU. The result does not depend on it.
        progress: Called at the start and after each shard.

    Raises UserError if `out` holds something else, if another process builds there, or if it
    cannot be written.
    """
    report = progress or (lambda done, total: None)
    total = sum(plan.splits.values())
    with writing(out, _WHAT), claimed(out, WORK, plan.request):
        if (out / MANIFEST).exists():
            report(total, total)
            return open_dataset(out)
        _clear_staging(out)
        records = _make_shards(plan, out, workers, report)
        for name, content in plan.beside([record.facts for _, record in records]).items():
            write_atomic(out / name, content)
        write_manifest(out, _manifest(plan, records))
        _clear_staging(out)
        for record in (out / WORK).glob("*.tar.json"):
            record.unlink()
    return open_dataset(out)


def _make_shards(
    plan: BuildPlan, out: Path, workers: int, report: Progress
) -> list[tuple[_Slot, ShardRecord]]:
    """Make the shards that `out` does not hold yet; return all of them in the plan's order."""
    slots = _slots(plan)
    total = sum(plan.splits.values())
    records = {slot.file: kept for slot in slots if (kept := _kept(out, slot.file)) is not None}
    for record in records.values():
        plan.watch(record.facts)
    sizes = {slot.file: slot.stop - slot.start for slot in slots}
    done = sum(sizes[file] for file in records)
    report(done, total)
    orders = (
        _Order(out, slot.file, plan.source.job(slot.split, slot.start, slot.stop))
        for slot in slots
        if slot.file not in records
    )
    modules = (__name__, type(plan.source).__module__)
    for record in in_fresh_processes(_make, orders, workers, lambda o: o.file, modules):
        records[record.shard.file] = record
        plan.watch(record.facts)
        done += sizes[record.shard.file]
        report(done, total)
    return [(slot, records[slot.file]) for slot in slots]


def _slots(plan: BuildPlan) -> list[_Slot]:
    return [
        _Slot(
            split,
            f"{split}-{number:06d}.tar",
            start,
            min(start + plan.samples_per_shard, samples),
        )
        for split, samples in plan.splits.items()
        for number, start in enumerate(range(0, samples, plan.samples_per_shard))
    ]


def _make(order: _Order) -> ShardRecord:
    """Make one shard; runs in a fresh process."""
    work = order.out / WORK
    with writing(order.out, _WHAT), at_work(order.out):
        staging = Path(tempfile.mkdtemp(prefix="staging-", dir=work))
        with ShardWriter(staging / order.file, empty=True) as shard:
            facts = order.job.write(shard.add)
        record = ShardRecord(shard=shard.info, facts=facts)
        move_shard(staging / order.file, order.out / order.file)
        write_atomic(work / f"{order.file}.json", record.model_dump_json().encode())
        staging.rmdir()
    return record


def _kept(out: Path, file: str) -> ShardRecord | None:
    """Return the record of a shard that is finished and whole, else None."""
    try:
        record = ShardRecord.model_validate_json((out / WORK / f"{file}.json").read_bytes())
        with (out / file).open("rb") as shard:
            digest = hashlib.file_digest(shard, "sha256").hexdigest()
    except (FileNotFoundError, ValidationError):
        return None
    return record if digest == record.shard.sha256 else None


def _manifest(plan: BuildPlan, records: Sequence[tuple[_Slot, ShardRecord]]) -> Manifest:
    splits = {}
    for split in plan.splits:
        shards = tuple(record.shard for slot, record in records if slot.split == split)
        splits[split] = SplitInfo(samples=sum(s.samples for s in shards), shards=shards)
    return Manifest(
        name=plan.name,
        classes=plan.classes,
        wnids=plan.wnids,
        subset=plan.subset,
        modalities=plan.source.modalities([record.facts for _, record in records]),
        splits=splits,
    )


def _clear_staging(out: Path) -> None:
    """Remove what a killed build left half written."""
    for leftover in (out / WORK).glob("staging-*"):
        shutil.rmtree(leftover)
    for folder in (out, out / WORK):
        for partial in folder.glob(".*.partial"):
            partial.unlink()
