"""Verifying a data set: every shard against the manifest, every member against its modality."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from outmodal.data.decode import DecodeError, decode, decode_numbers, find_member
from outmodal.data.labels import LABEL, parse_label
from outmodal.data.manifest import MANIFEST, Dataset, Manifest, ShardInfo
from outmodal.data.shards import ShardDamage, read_shard, scan_shard
from outmodal.errors import UserError

Progress = Callable[[int, int], None]
"""Called with (shards done, shards in total) after every shard."""

TARGET, JSON = "target.npy", "json"
_CHUNK = 1 << 20
_OTHERS = (LABEL, TARGET, JSON)


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        ok: Nothing is wrong.
        problems: Everything that is wrong, each line with its shard, and its key if it has one.
        samples: Whole samples that were read.
        shards: Shards that the manifest lists.
    """

    ok: bool
    problems: tuple[str, ...]
    samples: int
    shards: int


@dataclass(frozen=True)
class _Found:
    """What the check of one shard found."""

    problems: tuple[str, ...]
    samples: int


def check_dataset(
    dataset: Dataset, workers: int = 0, progress: Progress | None = None
) -> CheckReport:
    """Check sizes, sha256, counts, member names, labels, and that every member can be decoded.

    Args:
        dataset: Open it with `open_dataset(path, verify=False)`, so that missing shards are
            listed like everything else.
        workers: Processes; 0 works in this one.
        progress: Called after every shard.

    The list is complete, and in the manifest's order.
    """
    shards = [shard for split in dataset.manifest.splits.values() for shard in split.shards]
    found: dict[int, _Found] = {}
    for position, result in _checked(dataset, shards, workers):
        found[position] = result
        if progress is not None:
            progress(len(found), len(shards))
    problems = [*_folder_problems(dataset)]
    for position in range(len(shards)):
        problems.extend(found[position].problems)
    samples = sum(result.samples for result in found.values())
    return CheckReport(not problems, tuple(problems), samples, len(shards))


def _checked(
    dataset: Dataset, shards: Sequence[ShardInfo], workers: int
) -> Iterator[tuple[int, _Found]]:
    """Yield (position, result) of every shard as it is done."""
    if workers <= 0:
        for position, shard in enumerate(shards):
            yield position, _check_shard(dataset.root, dataset.manifest, shard)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports cost seconds, so they are paid once
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs: dict[Future[_Found], int] = {
            pool.submit(_check_shard, dataset.root, dataset.manifest, shard): position
            for position, shard in enumerate(shards)
        }
        for job in as_completed(jobs):
            try:
                yield jobs[job], job.result()
            except BrokenProcessPool:
                # A decoder's C code crashed, or memory ran out; every unfinished shard is named.
                name = shards[jobs[job]].file
                lost = f"{name}: not checked: a checking process died; check with fewer workers"
                yield jobs[job], _Found((lost,), 0)


def _folder_problems(dataset: Dataset) -> Iterator[str]:
    listed: set[str] = set()
    for name, split in dataset.manifest.splits.items():
        listed.update(shard.file for shard in split.shards)
        if not split.samples:
            yield f"{MANIFEST}: split '{name}' is empty"
    for path in sorted(dataset.root.glob("*.tar")):
        if path.name not in listed:
            yield f"{path.name}: lies in the folder, but {MANIFEST} does not list it"


def _check_shard(root: Path, manifest: Manifest, shard: ShardInfo) -> _Found:
    path = root / shard.file
    problems: list[str] = []
    samples = 0
    try:
        problems.extend(_file_problems(path, shard))
        index = scan_shard(path)
        if len(index) != shard.samples:
            problems.append(f"holds {len(index)} whole samples, {MANIFEST} says {shard.samples}")
        problems.extend(_repeated(index.keys))
        for _, key, members in read_shard(path):
            samples += 1
            problems.extend(
                f"sample '{key}': {text}" for text in sample_problems(manifest, members)
            )
    except FileNotFoundError:
        problems.append(f"missing, but {MANIFEST} lists it")
    except ShardDamage as damage:
        problems.append(f"{damage.detail} ({damage.read_ok} whole samples before it)")
    except OSError as error:
        problems.append(f"cannot be read: {error.strerror}")
    return _Found(tuple(f"{shard.file}: {text}" for text in problems), samples)


def _file_problems(path: Path, shard: ShardInfo) -> Iterator[str]:
    """Compare bytes and sha256 with the manifest."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    if size != shard.bytes:
        yield f"{size} bytes, {MANIFEST} says {shard.bytes}"
    if digest.hexdigest() != shard.sha256:
        yield f"sha256 is {digest.hexdigest()}, {MANIFEST} says {shard.sha256}"


def _repeated(keys: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            yield f"key '{key}' occurs twice"
        seen.add(key)


def sample_problems(manifest: Manifest, members: Mapping[str, bytes]) -> Iterator[str]:
    """Yield everything that is wrong with one sample's members."""
    for suffix in members:
        if suffix not in _OTHERS and suffix.partition(".")[0] not in manifest.modalities:
            yield f"member '{suffix}' belongs to no modality of {MANIFEST}"
    if not any(suffix.partition(".")[0] in manifest.modalities for suffix in members):
        yield "no modality at all"
    for name, spec in manifest.modalities.items():
        try:
            data = find_member(spec, name, members)
            if data is not None:
                decode(spec, data)
        except DecodeError as error:
            yield f"modality '{name}': {error}"
    yield from _other_problems(manifest, members)


def _other_problems(manifest: Manifest, members: Mapping[str, bytes]) -> Iterator[str]:
    """Check the members that are not modalities: class, target, and free JSON."""
    try:
        if LABEL in members:
            parse_label(members[LABEL], len(manifest.classes), LABEL)
    except UserError as error:
        yield str(error)
    try:
        if TARGET in members:
            decode_numbers(members[TARGET])
    except DecodeError as error:
        yield f"{TARGET}: {error}"
    try:
        json.loads(members.get(JSON, b"{}"))
    except (ValueError, RecursionError) as error:
        yield f"{JSON}: {error}"
