"""Shards: tars of samples, written, indexed and read.

A sample's members share a key and follow each other: `<key>.<modality>.<ext>`, `<key>.cls`,
`<key>.target.npy`, `<key>.json`. Reading goes through webdataset's tar tools, on slices of a file
that is opened here: no URL is ever parsed, no name in a tar ever becomes a path. What webdataset
yields is compared with the offset index of `shard_index`.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from outmodal.data.shard_index import (
    Member,
    ShardDamage,
    ShardIndex,
    free_suffix,
    read_members,
    scan_shard,
)
from outmodal.data.shard_writer import ShardWriter

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

_READ_AHEAD = 1 << 20
_BROKEN = (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError, RecursionError)


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
    path: Path, *, start: int = 0, stop: int | None = None, select: Sequence[int] | None = None
) -> Iterator[tuple[int, str, dict[str, bytes]]]:
    """Yield (position, key, members) of the samples of one shard, in the shard's order.

    Args:
        path: The tar.
        start: First position.
        stop: Behind the last position; None is the end of the shard.
        select: Positions wanted; only those within [start, stop) are read. The bytes of
            other samples are not read, and runs of neighbours are read in one sweep.

    Raises:
        ShardDamage: The shard is broken, or holds fewer samples than asked; all samples before
            the damage have been yielded by then.

    A sample with two members of one name gives the second as `image.png.2`.
    """
    index = scan_shard(path)
    wanted = _wanted(len(index), index.damage is not None, start, stop, select)
    done = 0
    try:
        with open(path, "rb", buffering=0) as file:
            for first, last in _runs([p for p in wanted if p < len(index)]):
                for item in _read_run(file.fileno(), index, first, last):
                    yield item
                    done += 1
    except _BROKEN as error:
        # webdataset adds " @ <file object>" and further arguments to what it passes on.
        detail = str(error.args[0] if error.args else error).partition(" @ ")[0]
        raise ShardDamage(path.name, detail, done) from None
    if done < len(wanted):
        short = f"holds {len(index)} whole samples, sample {wanted[done]} was asked for"
        raise ShardDamage(path.name, index.damage or short, done)


def _wanted(
    held: int, damaged: bool, start: int, stop: int | None, select: Sequence[int] | None
) -> Sequence[int]:
    """Positions to read. Of a damaged shard without `stop`, one more than it holds is asked."""
    if select is not None:
        chosen = (int(p) for p in select)
        return sorted({p for p in chosen if p >= start and (stop is None or p < stop)})
    return range(start, held + int(damaged) if stop is None else stop)


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, behind last) of each stretch of neighbours in sorted `positions`."""
    first = 0
    for i in range(1, len(positions) + 1):
        if i == len(positions) or positions[i] != positions[i - 1] + 1:
            yield positions[first], positions[i - 1] + 1
            first = i


def _read_run(
    handle: int, index: ShardIndex, first: int, last: int
) -> Iterator[tuple[int, str, dict[str, bytes]]]:
    """Read the samples [first, last) through webdataset and compare them with the index.

    Raises ValueError or tarfile.TarError where they differ.
    """
    begin, end = int(index.starts[first]), int(index.ends[last - 1])
    raw = _Slice(handle, begin, end)
    with io.BufferedReader(raw, min(end - begin, _READ_AHEAD)) as stream:
        position = first
        for sample in group_by_keys(_named(tar_file_iterator(stream), index.file)):
            members = {k: v for k, v in sample.items() if not k.startswith("__")}
            key = sample["__key__"]
            if position >= last or key != index.keys[position]:
                raise ValueError(f"changed while it was read: sample '{key}' was not expected")
            if tuple(members) != index.suffixes(position):
                raise ValueError(f"changed while it was read: members of '{key}' differ")
            yield position, key, members
            position += 1
    if position < last:
        raise ValueError(f"ends at sample {position}: its file changed while it was read")


def _named(members: Iterator[dict[str, Any]], url: str) -> Iterator[dict[str, Any]]:
    """Add the shard's name, which group_by_keys wants, and tell repeated members apart."""
    current, taken = None, set[str]()
    for member in members:
        key, suffix = base_plus_ext(member["fname"])
        if key is None:
            continue
        if key != current:
            current, taken = key, set()
        free = free_suffix(suffix.lower(), taken)
        taken.add(free)
        yield {"fname": f"{key}.{free}", "data": member["data"], "__url__": url}


class _Slice(io.RawIOBase):
    """The bytes [begin, end) of an open file as a file that tarfile can stream from."""

    def __init__(self, handle: int, begin: int, end: int) -> None:
        super().__init__()
        self._handle, self._at, self._end = handle, begin, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the slice and return how many bytes that gave."""
        view = memoryview(buffer)[: self._end - self._at]
        got = os.preadv(self._handle, [view], self._at) if len(view) else 0
        self._at += got
        return got
