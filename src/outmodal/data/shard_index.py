"""Where each sample of a shard lies: one pass over a tar's headers, and what is wrong with it.

webdataset ends a shard without a word where a header in its middle is broken or zeroed. The scan
here looks behind the last header that it understands, so such damage has a name and a place.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from re import compile as pattern
from sys import intern
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import base_plus_ext

META = pattern(r"__[^/]*__($|/)")
"""Names that webdataset takes for metadata and skips."""

_CHUNK = 1 << 20
# What tarfile raises on bytes that are no tar, beyond its own errors.
_BROKEN = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)


class ShardDamage(Exception):
    """A shard is truncated, corrupt, or shorter than asked.

    Attributes:
        shard: File name of the shard.
        detail: What is wrong, with the byte or the key.
        read_ok: Samples that were read, or are readable, before the damage.
    """

    def __init__(self, shard: str, detail: str, read_ok: int) -> None:
        super().__init__(shard, detail, read_ok)
        self.shard, self.detail, self.read_ok = shard, detail, read_ok

    def __str__(self) -> str:
        return f"shard {self.shard}: {self.detail} ({self.read_ok} samples read before it)"


class Member(NamedTuple):
    """Where one member's bytes lie in its shard."""

    suffix: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where every whole sample of a shard lies. N samples, M members.

    Attributes:
        file: File name of the shard.
        bytes: Size of the shard.
        keys: [N] sample keys in the order of the tar.
        starts: [N] offset of each sample's first header.
        ends: [N] offset behind each sample's last member.
        damage: What ended the scan early, None for a whole shard. The sample that the damage
            lies in or next to is not counted, because members of it may be lost.
    """

    file: str
    bytes: int
    keys: tuple[str, ...]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    damage: str | None
    _first: NDArray[np.int64] = field(repr=False)  # [N+1] row of each sample's first member
    _suffixes: tuple[str, ...] = field(repr=False)  # [M]
    _offsets: NDArray[np.int64] = field(repr=False)  # [M]
    _sizes: NDArray[np.int64] = field(repr=False)  # [M]

    def __len__(self) -> int:
        return len(self.keys)

    def suffixes(self, position: int) -> tuple[str, ...]:
        """Return the suffixes of the members of the sample at `position`, in the tar's order."""
        return self._suffixes[self._first[position] : self._first[position + 1]]

    def members(self, position: int) -> tuple[Member, ...]:
        """Return the members of the sample at `position`, in the tar's order."""
        rows = range(int(self._first[position]), int(self._first[position + 1]))
        return tuple(
            Member(self._suffixes[r], int(self._offsets[r]), int(self._sizes[r])) for r in rows
        )


def scan_shard(path: Path) -> ShardIndex:
    """Return the index of a shard, from one pass over its headers and kept in memory.

    The cache knows a shard by path, size and time of change. Damage is noted in the index;
    ShardDamage is raised only if the file cannot be opened at all.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ShardDamage(path.name, f"cannot be opened: {error.strerror}", 0) from None
    return _scan(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _scan(path: str, size: int, _mtime_ns: int) -> ShardIndex:
    scan = _Scan()
    try:
        with open(path, "rb") as file:
            damage = scan.run(file, size)
    except OSError as error:
        raise ShardDamage(Path(path).name, f"cannot be read: {error}", 0) from None
    return scan.index(Path(path).name, size, damage)


class _Scan:
    """Collects the samples of one tar by webdataset's rules for keys and skipped names."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.first: list[int] = []
        self.starts = array("q")
        self.ends = array("q")
        self.suffixes: list[str] = []
        self.offsets = array("q")
        self.sizes = array("q")

    def run(self, file: BinaryIO, size: int) -> str | None:
        """Read all headers; return what is wrong with the tar, or None."""
        end = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    trouble = "the tar runs backwards" if tar.offset <= end else self.add(info)
                    if trouble:
                        return f"{trouble} at byte {info.offset}"
                    end = tar.offset
        except _BROKEN as error:
            return f"{error} after byte {end}"
        return _tail(file, end, size)

    def add(self, info: tarfile.TarInfo) -> str | None:
        """Take in one entry; return what makes it unusable, or None."""
        if not info.isreg() or META.match(info.name):
            return None
        key, suffix = base_plus_ext(info.name)
        if key is None or suffix is None:
            return None
        suffix = suffix.lower()
        fault = _fault(info, suffix)
        if fault:
            return fault
        if not self.keys or self.keys[-1] != key:
            self.keys.append(key)
            self.first.append(len(self.suffixes))
            self.starts.append(info.offset)
            self.ends.append(0)
        suffix = free_suffix(suffix, self.suffixes[self.first[-1] :])
        self.suffixes.append(intern(suffix))
        self.offsets.append(info.offset_data)
        self.sizes.append(info.size)
        self.ends[-1] = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return None

    def index(self, name: str, size: int, damage: str | None) -> ShardIndex:
        """Return the finished index; damage takes the last sample with it."""
        count = len(self.keys) - (1 if damage and self.keys else 0)
        first = np.array([*self.first, len(self.suffixes)], np.int64)[: count + 1]
        members = int(first[-1])
        return ShardIndex(
            file=name,
            bytes=size,
            keys=tuple(self.keys[:count]),
            starts=np.array(self.starts, np.int64)[:count],
            ends=np.array(self.ends, np.int64)[:count],
            damage=damage,
            _first=first,
            _suffixes=tuple(self.suffixes[:members]),
            _offsets=np.array(self.offsets, np.int64)[:members],
            _sizes=np.array(self.sizes, np.int64)[:members],
        )


def _fault(info: tarfile.TarInfo, suffix: str) -> str | None:
    """Say why a member cannot be read by offset or named, or return None."""
    if not is_utf8(info.name):
        return f"member name {info.name!a} is not UTF-8"
    if info.issparse():
        return f"sparse member {info.name}"
    # webdataset keeps its own entries under such names.
    return f"member name {info.name} is reserved" if suffix.startswith("__") else None


def free_suffix(suffix: str, taken: Collection[str]) -> str:
    """Return the suffix of a member beside those of its sample that are `taken`.

    A second member of the same name is called `image.png.2`: then decoders refuse this sample for
    having two of a modality, and the rest of the shard stays readable.
    """
    free, number = suffix, 1
    while free in taken:
        number += 1
        free = f"{suffix}.{number}"
    return free


def is_utf8(name: str) -> bool:
    """Say whether `name` came from valid UTF-8; tarfile hides other bytes in surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tail(file: BinaryIO, end: int, size: int) -> str | None:
    """Say what is wrong behind the last member, where only zero blocks may be."""
    if size - end < tarfile.BLOCKSIZE:
        return f"cut short at byte {size}: the tar has no end mark"
    file.seek(end)
    at = end
    while chunk := file.read(_CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            found = at + len(chunk) - len(rest)
            kind = "bad header" if found < end + tarfile.BLOCKSIZE else "zeros in the middle"
            return f"{kind} at byte {end}, data follows"
        at += len(chunk)
    return None


def read_members(
    path: Path, index: ShardIndex, suffix: str, limit: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yield (position, bytes) of every sample's member `suffix`, None where it is absent.

    Only these members are read, not what lies between them. One larger than `limit` bytes is cut
    to one byte more than that. Raises ShardDamage if the file ends before a member does.
    """
    with open(path, "rb", buffering=0) as file:
        for position in range(len(index)):
            found = next((m for m in index.members(position) if m.suffix == suffix), None)
            if found is None:
                yield position, None
                continue
            size = min(found.size, limit + 1)
            data = os.pread(file.fileno(), size, found.offset)
            if len(data) < size:
                raise ShardDamage(path.name, f"ends inside '{index.keys[position]}'", position)
            yield position, data
