"""A data set again without what is broken in it: a new folder, and a list of what was left out.

OUT/dataset.json, OUT/train-000000.tar ...   the repaired data set; whole shards are hard links
OUT/repair.json                              what was left out: shard, key, reason
OUT/.repair/                                 the request, and what is done so far

The original is only read. A shard is rewritten with its whole and readable samples, bytes as they
were; a shard that is cut in its middle keeps the samples before the cut. Members that belong to
no modality are left out alone, without their sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outmodal.data.cache import sync_folder, write_atomic
from outmodal.data.check import CheckReport, all_shards, make_report
from outmodal.data.check_sample import Expected
from outmodal.data.check_shard import Found, Problem, check_shard
from outmodal.data.claim import claimed, writing
from outmodal.data.labels import LABEL, LABEL_BYTES
from outmodal.data.manifest import Dataset, ShardInfo, SplitInfo, write_manifest
from outmodal.data.orphans import at_work
from outmodal.data.shard_index_file import index_name, label_array, write_index
from outmodal.data.shard_writer import ShardWriter
from outmodal.data.shards import ShardDamage, read_members, read_shard, scan_shard
from outmodal.data.store import ShardPlace
from outmodal.data.store_local import LocalShard
from outmodal.data.tasks import Progress, run_tasks
from outmodal.data.whole_shard import copy_shard, hash_shard
from outmodal.errors import UserError

REPORT = "repair.json"
_WORK = ".repair"
_CUT = ("count", "damage")
_HARMLESS = ("index", "sha256", "bytes")
_LOST = ("missing", "unreadable", "not checked")


@dataclass(frozen=True)
class LeftOut:
    """One thing that the repaired data set lacks.

    Attributes:
        shard: File name.
        key: Key of the sample, "" for a whole shard or for what a cut has taken.
        reason: What was wrong.
        member: The member, where the rest of its sample was kept.
    """

    shard: str
    key: str
    reason: str
    member: str = ""


@dataclass(frozen=True)
class Mended:
    """What became of one shard.

    Attributes:
        info: Its entry in the new manifest, None if nothing of it is left.
        left_out: What it lost.
        found: The check of the original.
        rewritten: Whether its bytes are new.
    """

    info: ShardInfo | None
    left_out: tuple[LeftOut, ...]
    found: Found
    rewritten: bool


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        out: Folder of the repaired data set.
        left_out: Everything that it lacks, in the manifest's order.
        report: The check of the original.
        rewritten: Shards whose bytes are new.
        samples: Samples of the repaired data set.
    """

    out: Path
    left_out: tuple[LeftOut, ...]
    report: CheckReport
    rewritten: int
    samples: int


def repair_dataset(
    dataset: Dataset, out: Path, workers: int = 0, progress: Progress | None = None
) -> Repair:
    """Check every shard, and write what is good of the data set into the folder `out`.

    A run that was stopped goes on when it is repeated: finished shards are not read again. `out`
    becomes a data set with its last file, the manifest.

    Args:
        dataset: Open it with `open_dataset(path, verify=False)`.
        out: A new folder, or one that the same repair has begun.
        workers: Processes; 0 works in this one.
        progress: Called with (shards done, shards in total) after each.

    Raises:
        UserError: `out` holds something else, cannot be written, or nothing is left to write.
    """
    if dataset.store.folder is not None and _same(dataset.store.folder, out):
        raise UserError(f"{out} is the data set itself, which is never changed: choose a new --out")
    shards = all_shards(dataset)
    request = {"repair": dataset.where, "fingerprint": dataset.fingerprint()}
    with writing(out, "the repaired data set"), claimed(out, _WORK, request):
        mended: dict[int, Mended] = {}
        calls = [
            (dataset.shard(shard), Expected.of(dataset, shard), shard, out) for _, shard in shards
        ]
        for position, result in run_tasks(_mend, calls, workers):
            mended[position] = result if result is not None else _died(shards[position][1])
            if progress is not None:
                progress(len(mended), len(shards))
        done = [mended[position] for position in range(len(shards))]
        return _finish(dataset, out, done)


def _same(folder: Path, out: Path) -> bool:
    return folder.resolve() == out.resolve()


def _finish(dataset: Dataset, out: Path, done: list[Mended]) -> Repair:
    """Write report and manifest."""
    kept: dict[str, list[ShardInfo]] = {name: [] for name in dataset.manifest.splits}
    for (split, _), mended in zip(all_shards(dataset), done, strict=True):
        if mended.info is not None:
            kept[split].append(mended.info)
    splits = {
        name: SplitInfo(samples=sum(info.samples for info in infos), shards=tuple(infos))
        for name, infos in kept.items()
        if infos
    }
    if not splits:
        raise UserError(f"{dataset.where}: no sample of it is whole: there is nothing to repair")
    repair = Repair(
        out,
        tuple(item for mended in done for item in mended.left_out),
        make_report(dataset, [mended.found for mended in done]),
        sum(mended.rewritten for mended in done),
        sum(split.samples for split in splits.values()),
    )
    content = {
        "source": dataset.where,
        "fingerprint": dataset.fingerprint(),
        "samples": repair.samples,
        "left_out": [asdict(item) for item in repair.left_out],
        "problems": [str(problem) for problem in repair.report.problems],
    }
    write_atomic(out / REPORT, _json(content))
    write_manifest(out, dataset.manifest.model_copy(update={"splits": splits}))
    return repair


def _died(shard: ShardInfo) -> Mended:
    raise UserError(
        f"{shard.file}: not repaired: a process died at it; run the same command again with fewer "
        "--workers: finished shards are kept"
    )


def _mend(place: ShardPlace, expected: Expected, shard: ShardInfo, out: Path) -> Mended:
    """Check and write one shard, unless an earlier run did; the record comes last."""
    with at_work(out):
        record = out / _WORK / f"{shard.file}.json"
        done = _recorded(record, out)
        return _mended(place, expected, shard, out, record) if done is None else done


def _mended(
    place: ShardPlace, expected: Expected, shard: ShardInfo, out: Path, record: Path
) -> Mended:
    found = check_shard(place, expected, shard)
    if any(problem.kind in _LOST for problem in found.problems):
        reasons = tuple(LeftOut(shard.file, "", problem.detail) for problem in found.problems)
        mended = Mended(None, reasons, found, rewritten=False)
    elif all(problem.kind in _HARMLESS for problem in found.problems):
        mended = Mended(_carry(place, shard, found, out), (), found, rewritten=False)
    else:
        mended = _rewrite(place, shard, found, out)
    if mended.info is not None and not mended.rewritten:  # a writer writes its own
        _write_index(out, mended.info)
    write_atomic(record, _json(_as_json(mended)))
    return mended


def _write_index(out: Path, info: ShardInfo) -> None:
    path = out / index_name(info.file)
    path.unlink(missing_ok=True)
    place = LocalShard(out / info.file, info.bytes, info.sha256)
    index = scan_shard(place)
    labels = label_array(data for _, data in read_members(place, index, LABEL, LABEL_BYTES))
    write_index(out, index, info.sha256, labels)


def _carry(place: ShardPlace, shard: ShardInfo, found: Found, out: Path) -> ShardInfo:
    """Put a whole shard into `out`: a hard link where that is possible, else a copy.

    Nothing here writes into a tar that exists, so the original is safe behind the link. The
    entry tells what the file holds, if the manifest's checksum was wrong.
    """
    target = out / shard.file
    target.unlink(missing_ok=True)
    linked = isinstance(place, LocalShard) and _linked(place.path, target)
    if linked:
        sync_folder(out)
    else:
        copy_shard(place, target)
    if linked and not found.problems:
        return shard
    digest, size = hash_shard(LocalShard(target))
    return shard.model_copy(update={"sha256": digest, "bytes": size})


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False  # another file system, or one without links: the caller copies
    return True


def _rewrite(place: ShardPlace, shard: ShardInfo, found: Found, out: Path) -> Mended:
    """Write the good samples of a shard into `out`."""
    lost = [LeftOut(shard.file, "", p.detail) for p in found.problems if p.kind in _CUT]
    kept = 0
    try:
        with ShardWriter(out / shard.file) as writer:
            for key, members in _good(place, found, lost):
                try:
                    writer.add(key, members)
                    kept += 1
                except UserError as error:  # a key that nothing may be written under
                    lost.append(LeftOut(shard.file, key, str(error)))
            if not kept:
                raise _Empty
    except _Empty:
        return Mended(None, tuple(lost), found, rewritten=True)
    return Mended(writer.info, tuple(lost), found, rewritten=True)


class _Empty(Exception):
    """No sample of a shard is good; the writer must not make a file."""


def _good(
    place: ShardPlace, found: Found, lost: list[LeftOut]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield what can be kept of each sample; what cannot goes to `lost`."""
    problems: dict[int, list[Problem]] = {}
    for problem in found.problems:
        problems.setdefault(problem.position, []).append(problem)
    try:
        for position, key, members in read_shard(place):
            bad = problems.get(position, [])
            fatal = [problem for problem in bad if not problem.stray]
            if fatal:
                reason = "; ".join(problem.detail for problem in fatal)
                lost.append(LeftOut(place.name, key, reason))
                continue
            for problem in bad:
                lost.append(LeftOut(place.name, key, problem.detail, problem.stray))
            stray = {problem.stray for problem in bad}
            yield key, {suffix: data for suffix, data in members.items() if suffix not in stray}
    except ShardDamage:
        return  # the check has named it; everything before it was kept


def _as_json(mended: Mended) -> dict[str, Any]:
    return {
        **asdict(mended),
        "info": None if mended.info is None else mended.info.model_dump(mode="json"),
    }


def _recorded(record: Path, out: Path) -> Mended | None:
    """Return what an earlier run did with a shard, if it is still there."""
    try:
        content = json.loads(record.read_bytes())
        info = content["info"] and ShardInfo.model_validate(content["info"])
        if info is not None and (out / info.file).stat().st_size != info.bytes:
            return None
        found = content["found"]
        problems = tuple(Problem(**problem) for problem in found["problems"])
        left_out = tuple(LeftOut(**item) for item in content["left_out"])
        return Mended(info, left_out, Found(problems, found["samples"]), content["rewritten"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or broken: the shard is done again


def _json(content: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1)}\n".encode()
