"""Writing one shard: complete or not there at all, and byte for byte the same every time."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from array import array
from collections.abc import Mapping
from pathlib import Path
from re import compile as pattern
from types import TracebackType
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np

from outmodal.data.cache import sync_folder
from outmodal.data.manifest import ShardInfo
from outmodal.data.shard_index import ShardIndex
from outmodal.data.shard_index_file import index_name, label_array, write_index
from outmodal.data.shard_scan import META, is_utf8
from outmodal.errors import UserError

_SUFFIX = pattern(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9]+)?")


class ShardWriter:
    """Writes one shard; the same samples always give the same bytes.

    Members carry no time, owner or mode of their own. The tar is written under a temporary
    name and gets its own only when it is complete and on the disk. Use:

        with ShardWriter(path) as shard:
            shard.add("000017", {"image.png": png, "cls": b"3"})
        shard.info  # file, samples, bytes, sha256

    Its index file is written beside it.

    Args:
        path: The tar.
        index: False writes no index file.
        empty: Whether the shard may have no sample.
    """

    def __init__(self, path: Path, *, index: bool = True, empty: bool = False) -> None:
        self.path, self._empty = path, empty
        self._rows = _Rows() if index else None
        self._partial = path.with_name(f".{path.name}.partial")
        self._keys: set[str] = set()
        self._info: ShardInfo | None = None

    def __enter__(self) -> ShardWriter:
        self._file = _HashingFile(self._partial.open("wb"))
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)
        return self

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample. `members` maps suffixes (image.png, cls) to bytes.

        Raises UserError for a key or suffix that readers of the format would not give back, or
        a key that this shard holds already.
        """
        problem = _key_problem(key) or _members_problem(key, members)
        if key in self._keys:
            problem = f"key '{key}' is used twice"
        if problem:
            raise UserError(f"{self.path.name}: {problem}")
        self._keys.add(key)
        for suffix in sorted(members):
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size = len(members[suffix])
            info.mode = 0o644
            self._file.first = b""
            self._tar.addfile(info, io.BytesIO(members[suffix]))
            if self._rows is not None:
                self._rows.add(suffix, len(members[suffix]), self._tar.offset, self._file.first)
        if self._rows is not None:
            self._rows.end(key, members.get("cls"))

    @property
    def info(self) -> ShardInfo:
        """What the manifest says of this shard; known once the writer is closed."""
        if self._info is None:
            raise RuntimeError(f"{self.path.name} is not complete yet")
        return self._info

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            try:
                self._file.close()
            finally:
                self._partial.unlink(missing_ok=True)

    def _commit(self) -> None:
        if not self._keys and not self._empty:
            raise UserError(f"{self.path.name}: a shard needs at least one sample")
        self._tar.close()
        self._file.sync()
        os.replace(self._partial, self.path)
        sync_folder(self.path.parent)
        self._info = ShardInfo(
            file=self.path.name,
            samples=len(self._keys),
            bytes=self._file.tell(),
            sha256=self._file.hexdigest(),
        )
        if self._rows is None or not self._keys:  # nothing to find
            self.path.with_name(index_name(self.path.name)).unlink(missing_ok=True)
        else:
            index = self._rows.index(self._info)
            write_index(self.path.parent, index, self._info.sha256, label_array(self._rows.labels))


def move_shard(path: Path, to: Path) -> None:
    """Rename a shard and its index file on one disk; what lies there is replaced. OSError."""
    beside, there = (p.with_name(index_name(p.name)) for p in (path, to))
    if beside.exists():
        os.replace(beside, there)  # first: an index without its shard is ignored
    os.replace(path, to)


class _Rows:
    """What the index file says of the samples written so far."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.labels: list[bytes | None] = []
        self.names: list[str] = []
        self.first = array("q", [0])
        self.offsets, self.sizes, self.checks = array("q"), array("q"), array("I")

    def add(self, suffix: str, size: int, end: int, header: bytes) -> None:
        """Take in a member that ends, filled up to a whole block, at `end`."""
        self.names.append(suffix)
        self.sizes.append(size)
        self.offsets.append(end - -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        self.checks.append(crc32(header[-tarfile.BLOCKSIZE :]))

    def end(self, key: str, label: bytes | None) -> None:
        """Close a sample."""
        self.keys.append(key)
        self.labels.append(label)
        self.first.append(len(self.names))

    def index(self, info: ShardInfo) -> ShardIndex:
        """Return the index of the whole shard."""
        first, offsets = np.array(self.first, np.int64), np.array(self.offsets, np.int64)
        sizes = np.array(self.sizes, np.int64)
        ends = offsets + -(-sizes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return ShardIndex(
            file=info.file,
            bytes=info.bytes,
            keys=tuple(self.keys),
            starts=offsets[first[:-1]] - tarfile.BLOCKSIZE,
            ends=ends[first[1:] - 1],
            damage=None,
            first=first,
            names=tuple(self.names),
            offsets=offsets,
            sizes=sizes,
            checks=np.array(self.checks, np.uint32),
        )


def _key_problem(key: str) -> str | None:
    """Say why `key` cannot name a sample, or return None."""
    name = key.rpartition("/")[2]
    if not name or "." in name:
        return f"key '{key}': its last part must not be empty or hold a dot"
    if key.startswith("/") or ".." in key.split("/") or META.match(key):
        return f"key '{key}': must not begin with / or __name__, or hold '..'"
    if not key.isprintable() or not is_utf8(key):
        return f"key {key!a}: holds characters that cannot be printed"
    return None


def _members_problem(key: str, members: Mapping[str, bytes]) -> str | None:
    """Say why `members` cannot be the members of a sample, or return None."""
    for suffix in members:
        if not _SUFFIX.fullmatch(suffix):
            return (
                f"member '{suffix}' of sample '{key}': must be cls, json or <modality>.<ext>, "
                "in lower case"
            )
    return None if members else f"sample '{key}' has no members"


class _HashingFile(io.BufferedIOBase):
    """A file for writing that keeps the sha256 of everything that went through it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0
        self.first = b""
        """What was written first since this was emptied."""

    def write(self, data: Any) -> int:
        """Write and hash `data`."""
        if not self.first:
            self.first = bytes(data)
        self._hash.update(data)
        self._size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Return the bytes written so far."""
        return self._size

    def hexdigest(self) -> str:
        """Return the sha256 of all bytes written so far."""
        return self._hash.hexdigest()

    def sync(self) -> None:
        """Put everything on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file below."""
        self._file.close()
        super().close()
