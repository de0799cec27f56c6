"""Checking one shard, whole or a part of it: its file, its index, and every sample inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from outmodal.data.check_sample import Expected, sample_faults
from outmodal.data.labels import LABEL, LABEL_BYTES
from outmodal.data.manifest import MANIFEST, ShardInfo
from outmodal.data.shard_index_file import index_problem, label_array, load_index
from outmodal.data.shard_scan import scan_file
from outmodal.data.shards import ShardDamage, ShardIndex, read_members, read_shard, scan_shard
from outmodal.data.store import ShardPlace, StoreError
from outmodal.data.whole_shard import hash_shard

PART = 4096
"""Samples of a shard that one process checks at a time: a giant shard is shared out too."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    Attributes:
        shard: File name; the manifest's where no shard is to blame.
        kind: "missing", "unreadable", "bytes", "sha256", "count", "damage", "index", "repeated
            key", "unlisted", "empty split" or "not checked" of a shard; "corrupt", "member",
            "label", "target" or "json" of a sample.
        detail: What is wrong.
        key: Key of the sample, "" where the whole shard is meant.
        position: Position of the sample in its shard, -1 where the whole shard is meant.
        stray: The member that the sample can do without, if that is all that is wrong with it.
    """

    shard: str
    kind: str
    detail: str
    key: str = ""
    position: int = -1
    stray: str = ""

    def __str__(self) -> str:
        """One line; keys that would disturb a terminal are escaped."""
        if self.position < 0:
            return f"{self.shard}: {self.detail}"
        key = self.key if self.key.isprintable() else ascii(self.key)[1:-1]
        return f"{self.shard}: sample '{key}': {self.detail}"


@dataclass(frozen=True)
class Found:
    """What the check of a shard, or of a part of one, found.

    Attributes:
        problems: In the order of the shard.
        samples: Whole samples that were read.
    """

    problems: tuple[Problem, ...]
    samples: int

    def __add__(self, other: Found) -> Found:
        return Found(self.problems + other.problems, self.samples + other.samples)


def parts(shard: ShardInfo) -> list[tuple[int, int | None]]:
    """Ranges of positions that cover a shard; the last is open, for more than is promised."""
    starts = list(range(0, max(shard.samples, 1), PART))
    return list(zip(starts, [*starts[1:], None], strict=True))


def check_part(
    place: ShardPlace, expected: Expected, shard: ShardInfo, start: int, stop: int | None
) -> Found:
    """Check the samples [start, stop) of a shard; with the first part its file and its index."""
    problems: list[Problem] = []
    samples = 0

    def note(kind: str, detail: str) -> None:
        problems.append(Problem(shard.file, kind, detail))

    try:
        if start == 0:
            problems.extend(_file_problems(place, shard))
        index = scan_shard(place)
        if start == 0:
            fresh = _fresh(place, index)
            problems.extend(_tar_problems(fresh, shard))
            problems.extend(_index_problems(place, fresh, shard))
        end = len(index) if stop is None else min(stop, len(index))
        for position, key, members in read_shard(place, start=start, stop=max(start, end)):
            samples += 1
            problems.extend(
                Problem(shard.file, fault.kind, fault.text, key, position, fault.stray)
                for fault in sample_faults(expected, members)
            )
    except FileNotFoundError:
        if start == 0:
            note("missing", f"missing, but {MANIFEST} lists it")
    except ShardDamage as damage:
        note("damage", f"{damage.detail} ({start + samples} whole samples before it)")
    except (OSError, StoreError) as error:
        note("unreadable", f"cannot be read: {getattr(error, 'strerror', None) or error}")
    return Found(tuple(problems), samples)


def check_shard(place: ShardPlace, expected: Expected, shard: ShardInfo) -> Found:
    """Check a whole shard."""
    return check_part(place, expected, shard, 0, None)


def _file_problems(place: ShardPlace, shard: ShardInfo) -> Iterator[Problem]:
    """Compare bytes and sha256 with the manifest."""
    digest, size = hash_shard(place)
    if size != shard.bytes:
        yield Problem(shard.file, "bytes", f"{size} bytes, {MANIFEST} says {shard.bytes}")
    if digest != shard.sha256:
        yield Problem(shard.file, "sha256", f"sha256 is {digest}, {MANIFEST} says {shard.sha256}")


def _fresh(place: ShardPlace, index: ShardIndex) -> ShardIndex:
    """Return the index that the tar itself gives, whatever its index file says."""
    if place.index_bytes() is None:
        return index
    with place.open() as file:
        return scan_file(file, place.sweep)


def _tar_problems(index: ShardIndex, shard: ShardInfo) -> Iterator[Problem]:
    if len(index) != shard.samples:
        detail = f"holds {len(index)} whole samples, {MANIFEST} says {shard.samples}"
        yield Problem(shard.file, "count", detail)
    if index.damage:
        detail = f"{index.damage} ({len(index)} whole samples before it)"
        yield Problem(shard.file, "damage", detail)
    for key, position in repeated(index.keys):
        yield Problem(shard.file, "repeated key", "its key occurs twice", key, position)


def _index_problems(place: ShardPlace, fresh: ShardIndex, shard: ShardInfo) -> Iterator[Problem]:
    """Compare the index file, if there is one, with the tar."""
    detail = index_problem(place)
    said = load_index(place, shard.bytes) if detail is None else None
    if said is not None:
        detail = _difference(place, said, fresh)
    if detail is not None:
        remedy = "make it again with `outmodal data index`"
        yield Problem(shard.file, "index", f"index file: {detail}; {remedy}")


def _difference(place: ShardPlace, said: ShardIndex, fresh: ShardIndex) -> str | None:
    """Say where an index file differs from its tar, or return None."""
    if said.keys != fresh.keys or any(
        said.members(n) != fresh.members(n) for n in range(len(fresh))
    ):
        return "it does not say what the tar holds"
    if said.labels is not None:
        found = label_array(data for _, data in read_members(place, fresh, LABEL, LABEL_BYTES))
        if found is None or not np.array_equal(found, said.labels):
            return "its labels are not those of the tar"
    return None


def repeated(keys: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield each key that stood at an earlier position too, with its position."""
    seen: set[str] = set()
    for position, key in enumerate(keys):
        if key in seen:
            yield key, position
        seen.add(key)
