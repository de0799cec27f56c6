"""Where each sample of a shard lies, and what is wrong with it.

An index comes from the file `<shard>.tar.index` if one lies beside the shard that fits what the
manifest says, and else from one pass over the tar's headers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outmodal.data.store import ShardPlace
from outmodal.data.store_local import as_place


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


_LOCAL = 8192  # bytes to read for a header where any stretch costs the same


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
        first: [N+1] row of each sample's first member.
        names: [M] suffixes.
        offsets, sizes: [M] where each member's bytes lie.
        checks: [M] crc32 of the 512 bytes before each member, its header: readers compare it.
        labels: [N] classes, -1 where a sample has none; None where they were not gathered.
        version: Of the file that was scanned.
    """

    file: str
    bytes: int
    keys: tuple[str, ...]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    damage: str | None
    first: NDArray[np.int64] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)
    sizes: NDArray[np.int64] = field(repr=False)
    checks: NDArray[np.uint32] = field(repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)
    version: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    def suffixes(self, position: int) -> tuple[str, ...]:
        """Return the suffixes of the members of the sample at `position`, in the tar's order."""
        return self.names[self.first[position] : self.first[position + 1]]

    def members(self, position: int) -> tuple[Member, ...]:
        """Return the members of the sample at `position`, in the tar's order."""
        rows = range(int(self.first[position]), int(self.first[position + 1]))
        return tuple(Member(self.names[r], int(self.offsets[r]), int(self.sizes[r])) for r in rows)


def scan_shard(shard: Path | ShardPlace) -> ShardIndex:
    """Return the index of a shard: of its index file, or from one pass over its headers.

    It is kept in memory under the shard's place, size and version. Damage is noted in the index;
    ShardDamage is raised only if the file cannot be opened or read at all, and StoreError for a
    place that does not answer.
    """
    place = as_place(shard)
    try:
        size, version = place.stamp()
    except OSError as error:
        raise ShardDamage(place.name, f"cannot be opened: {reason(error)}", 0) from None
    return _scan(place, size, version)


@lru_cache(maxsize=256)
def _scan(place: ShardPlace, size: int, version: str) -> ShardIndex:
    from outmodal.data.shard_index_file import load_index  # both import this module
    from outmodal.data.shard_scan import scan_file

    known = load_index(place, size)
    if known is not None:
        return replace(known, version=version)
    try:
        with place.open() as file:
            found = scan_file(file, place.sweep if place.far else _LOCAL)
    except OSError as error:
        raise ShardDamage(place.name, f"cannot be read: {reason(error)}", 0) from None
    return replace(found, version=version)


def read_members(
    shard: Path | ShardPlace, index: ShardIndex, suffix: str, limit: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yield (position, bytes) of every sample's member `suffix`, None where it is absent.

    Only these members are read, and what lies between near ones. One larger than `limit` bytes is
    cut to one byte more than that. Raises ShardDamage if the file ends before a member does.
    """
    place = as_place(shard)
    with place.open() as file:
        begin, data = 0, b""
        for position in range(len(index)):
            found = next((m for m in index.members(position) if m.suffix == suffix), None)
            if found is None:
                yield position, None
                continue
            size = min(found.size, limit + 1)
            if not begin <= found.offset <= found.offset + size <= begin + len(data):
                begin = found.offset
                data = file.pread(max(size, place.gap), begin)
            member = data[found.offset - begin : found.offset - begin + size]
            if len(member) < size:
                raise ShardDamage(place.name, f"ends inside '{index.keys[position]}'", position)
            yield position, member


def reason(error: OSError) -> str:
    """Say what failed, without numbers and file names."""
    return error.strerror or str(error.args[0] if error.args else error)
