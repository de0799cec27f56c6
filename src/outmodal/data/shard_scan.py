"""One pass over a tar's headers: where every sample lies, and what is wrong with the tar.

A reader that only follows headers ends a shard without a word where one in its middle is broken
or zeroed. The scan here looks behind the last header that it understands, so such damage has a
name and a place.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Collection
from re import compile as pattern
from sys import intern
from zlib import crc32

import numpy as np
from webdataset.tariterators import base_plus_ext

from outmodal.data.shard_index import ShardIndex
from outmodal.data.store import ShardFile

META = pattern(r"__[^/]*__($|/)")
"""Names that webdataset takes for metadata and skips."""

LONGEST_HEADER = 16 << 20
"""Extended headers above this size are damage: they hold names."""

_CHUNK = 1 << 20
# What tarfile raises on bytes that are no tar, beyond its own errors.
_BROKEN = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)


def scan_file(file: ShardFile, sweep: int) -> ShardIndex:
    """Return the index of an open tar. Raises OSError, and StoreError, of the file.

    Args:
        file: The tar.
        sweep: Bytes to read at once. Where headers lie further apart, what is between them is
            not read.
    """
    scan = _Scan(_Window(file, sweep))
    damage = scan.run()
    return scan.index(file.name, file.size, damage)


class _Window:
    """A file for tarfile that reads ahead, and knows the last block that was read."""

    def __init__(self, file: ShardFile, sweep: int) -> None:
        self._file, self._sweep = file, max(sweep, tarfile.BLOCKSIZE)
        self._begin, self._data = 0, b""
        self._at = 0
        self.block, self.block_end = b"", -1
        self.size = file.size

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, to: int) -> int:
        """Go to a position."""
        self._at = to
        return to

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes; ValueError above LONGEST_HEADER."""
        if not 0 <= size <= LONGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        begin = self._at - self._begin
        if begin < 0 or begin + size > len(self._data):
            self._begin, begin = self._at, 0
            self._data = self._file.pread(max(size, self._sweep), self._at)
        data = self._data[begin : begin + size]
        self._at += len(data)
        if size == tarfile.BLOCKSIZE:
            self.block, self.block_end = data, self._at
        return data

    def header_check(self, end: int) -> int:
        """Return the crc32 of the block that ends at `end`."""
        if self.block_end != end:
            self.block, self.block_end = self._file.pread(512, max(0, end - 512)), end
        return crc32(self.block)

    def tail(self, end: int) -> str | None:
        """Say what is wrong behind the last member, where only zero blocks may be."""
        if self.size - end < tarfile.BLOCKSIZE:
            return f"cut short at byte {self.size}: the tar has no end mark"
        at = end
        while chunk := self._file.pread(_CHUNK, at):
            rest = chunk.lstrip(b"\0")
            if rest:
                found = at + len(chunk) - len(rest)
                near = found < end + tarfile.BLOCKSIZE
                kind = "bad header" if near else "zeros in the middle"
                return f"{kind} at byte {end}, data follows"
            at += len(chunk)
        return None


class _Scan:
    """Collects the samples of one tar by webdataset's rules for keys and skipped names."""

    def __init__(self, window: _Window) -> None:
        self.window = window
        self.keys: list[str] = []
        self.first: list[int] = []
        self.starts = array("q")
        self.ends = array("q")
        self.suffixes: list[str] = []
        self.offsets = array("q")
        self.sizes = array("q")
        self.checks = array("I")

    def run(self) -> str | None:
        """Read all headers; return what is wrong with the tar, or None."""
        end = 0
        try:
            with tarfile.open(fileobj=self.window, mode="r:") as tar:  # type: ignore[call-overload]
                for info in tar:
                    trouble = "the tar runs backwards" if tar.offset <= end else self.add(info)
                    if trouble:
                        return f"{trouble} at byte {info.offset}"
                    end = tar.offset
                    tar.members.clear()  # it keeps every header otherwise
        except _BROKEN as error:
            return f"{error} after byte {end}"
        return self.window.tail(end)

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
        self.checks.append(self.window.header_check(info.offset_data))
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
            first=first,
            names=tuple(self.suffixes[:members]),
            offsets=np.array(self.offsets, np.int64)[:members],
            sizes=np.array(self.sizes, np.int64)[:members],
            checks=np.array(self.checks, np.uint32)[:members],
        )


def _fault(info: tarfile.TarInfo, suffix: str) -> str | None:
    """Say why a member cannot be read by offset or named, or return None."""
    if not is_utf8(info.name):
        return f"member name {info.name!a} is not UTF-8"
    if info.size < 0:
        return f"size {info.size} of member {info.name}"
    # A PAX header can replace a member's size without describing a sparse file whole.
    if info.issparse() or any(name.startswith("GNU.sparse") for name in info.pax_headers):
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
