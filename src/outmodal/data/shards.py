"""Shards: tars of samples, written, indexed and read.

A sample's members share a key and follow each other: `<key>.<modality>.<ext>`, `<key>.cls`,
`<key>.target.npy`, `<key>.json`. Keys and members are told apart as webdataset does, and no name
in a tar ever becomes a path. Reading goes straight to the offsets of the shard's index: one read
for a run of neighbours, and no header is parsed again, only compared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE
from zlib import crc32

from outmodal.data.shard_index import (
    Member,
    ShardDamage,
    ShardIndex,
    read_members,
    reason,
    scan_shard,
)
from outmodal.data.shard_writer import ShardWriter
from outmodal.data.store import ShardFile, ShardPlace
from outmodal.data.store_local import as_place

__all__ = [
    "Member",
    "RawSample",
    "ShardDamage",
    "ShardIndex",
    "ShardWriter",
    "read_members",
    "read_shard",
    "scan_shard",
]

_HEADERS = 8 * BLOCKSIZE  # extended headers of names, between two samples

_ABREAST = 8  # requests of one reader that are under way to a place that is far away

Item = tuple[int, str, dict[str, bytes]]


@dataclass(frozen=True)
class RawSample:
    """One sample as it lies in a shard.

    Attributes:
        key: Name of the sample.
        shard: File name of its shard.
        index: Position of the sample in its split.
        members: Suffix -> bytes, {"image.png": ..., "cls": b"3"}.
    """

    key: str
    shard: str
    index: int
    members: Mapping[str, bytes]


def read_shard(
    shard: Path | ShardPlace,
    *,
    start: int = 0,
    stop: int | None = None,
    select: Sequence[int] | None = None,
) -> Iterator[Item]:
    """Yield (position, key, members) of the samples of one shard, in the shard's order.

    Args:
        shard: The tar.
        start: First position.
        stop: Behind the last position; None is the end of the shard.
        select: Positions wanted; only those within [start, stop) are read. The bytes of
            other samples are not read, and runs of neighbours are read in one sweep.

    At most one sweep, or one sample if that is larger, is in memory beside what was yielded; of
    a shard that is far away two, because several requests are under way at a time.

    Raises:
        ShardDamage: The shard is broken, changed while it was read, or holds fewer samples than
            asked; all samples before the damage have been yielded by then.
        StoreError: The place does not answer.

    A sample with two members of one name gives the second as `image.png.2`.
    """
    place = as_place(shard)
    index = scan_shard(place)
    wanted = _wanted(len(index), index.damage is not None, start, stop, select)
    inside = [p for p in wanted if p < len(index)]
    done = 0
    try:
        with place.open() as file:
            sweeps = _sweeps(index, inside, place)
            for positions, data in _fetched(file, index, sweeps, place):
                for item in _cut(index, positions, data):
                    yield item
                    done += 1
            _compare(file, index)
    except (OSError, ValueError, MemoryError) as error:
        detail = reason(error) if isinstance(error, OSError) else str(error)
        raise ShardDamage(place.name, detail, done) from None
    if done < len(wanted):
        short = f"holds {len(index)} whole samples, sample {wanted[done]} was asked for"
        raise ShardDamage(place.name, index.damage or short, done)


def _wanted(
    held: int, damaged: bool, start: int, stop: int | None, select: Sequence[int] | None
) -> Sequence[int]:
    """Positions to read. Of a damaged shard without `stop`, one more than it holds is asked."""
    if select is not None:
        chosen = (int(p) for p in select)
        return sorted({p for p in chosen if p >= start and (stop is None or p < stop)})
    return range(start, held + int(damaged) if stop is None else stop)


def _sweeps(index: ShardIndex, positions: list[int], place: ShardPlace) -> Iterator[list[int]]:
    """Yield the sorted `positions` in groups that one read each gets."""
    starts, ends = index.starts[positions].tolist(), index.ends[positions].tolist()
    first, gap = 0, max(place.gap, _HEADERS)
    for i in range(1, len(positions)):
        if starts[i] - ends[i - 1] > gap or ends[i] - starts[first] > place.sweep:
            yield positions[first:i]
            first = i
    if positions:
        yield positions[first:]


def _span(index: ShardIndex, positions: list[int]) -> tuple[int, int]:
    """Where a sweep begins, and its bytes."""
    begin = int(index.starts[positions[0]])
    return begin, int(index.ends[positions[-1]]) - begin


def _fetched(
    file: ShardFile, index: ShardIndex, sweeps: Iterator[list[int]], place: ShardPlace
) -> Iterator[tuple[list[int], bytes]]:
    """Yield each sweep with its bytes, in order. Raises OSError and StoreError of the file, and
    ValueError where it is not the one that was indexed."""
    if not place.far:
        for positions in sweeps:
            begin, size = _span(index, positions)
            data = file.pread(size, begin)
            _compare(file, index)
            yield positions, data
        return
    waiting: deque[tuple[list[int], int, Future[bytes]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(_ABREAST, thread_name_prefix="shard")
    try:
        for positions in sweeps:
            begin, size = _span(index, positions)
            while waiting and (len(waiting) == _ABREAST or held + size > place.sweep):
                earlier, freed, job = waiting.popleft()
                yield earlier, job.result()
                held -= freed
            waiting.append((positions, size, pool.submit(file.pread, size, begin)))
            held += size
        for earlier, _, job in waiting:
            yield earlier, job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cut(index: ShardIndex, positions: list[int], data: bytes) -> Iterator[Item]:
    """Yield the samples of a sweep. Raises ValueError where it differs from the index."""
    begin, _ = _span(index, positions)
    rows = index.first[positions[0] : positions[-1] + 2].tolist()
    low, high = rows[0], rows[-1]
    places = (index.offsets[low:high] - begin).tolist()
    sizes, checks = index.sizes[low:high].tolist(), index.checks[low:high].tolist()
    names, view = index.names[low:high], memoryview(data)
    for position in positions:
        key, members = index.keys[position], dict[str, bytes]()
        sample = position - positions[0]
        for row in range(rows[sample] - low, rows[sample + 1] - low):
            at, stop = places[row], places[row] + sizes[row]
            if stop > len(data):
                raise ValueError(f"ends at sample {position}: its file changed while it was read")
            if crc32(view[at - BLOCKSIZE : at]) != checks[row]:
                raise ValueError(f"changed while it was read: a header of '{key}' differs")
            members[names[row]] = data[at:stop]
        yield position, key, members


def _compare(file: ShardFile, index: ShardIndex) -> None:
    """Raise ValueError if the file is not the one that was indexed."""
    if file.version != index.version:
        raise ValueError("changed while it was read")
