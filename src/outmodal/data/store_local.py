"""Shards in a folder of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from outmodal.closing import Closing
from outmodal.data.store import ShardPlace

INDEX = ".index"
"""What the name of a shard's index file has behind the shard's."""

LARGEST_INDEX = 1 << 30
"""An index file above this size is not read."""


class LocalFile(Closing):
    """An open file, read by position: any number of threads may share it.

    Args:
        handle: Of the file, opened for reading; it is closed with this.
        name: For messages.
    """

    def __init__(self, handle: int, name: str) -> None:
        self.name, self._handle = name, handle
        try:
            self.size = os.fstat(handle).st_size
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> str:
        """Time of the last change in ns, and the size, as they are now."""
        return _version(os.fstat(self._handle))

    def pread(self, size: int, offset: int) -> bytes:
        """Return the bytes [offset, offset + size), fewer only at the end. Raises OSError."""
        data = os.pread(self._handle, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]  # the kernel gives at most 2 GiB at once, and less after a signal
        got = len(data)
        while got < size and (more := os.pread(self._handle, size - got, offset + got)):
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def close(self) -> None:
        """Close the handle."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True)
class LocalShard:
    """A shard in a folder.

    Attributes:
        path: The tar.
        size: Bytes that the manifest says; -1 where there is no manifest.
        sha256: Checksum that the manifest says.
    """

    path: Path
    size: int = -1
    sha256: str = ""

    @property
    def name(self) -> str:
        """File name."""
        return self.path.name

    @property
    def where(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def far(self) -> bool:
        """No."""
        return False

    @property
    def gap(self) -> int:
        """None: the page cache gives any stretch at once."""
        return 0

    @property
    def sweep(self) -> int:
        """What fits into a CPU's cache."""
        return 1 << 20

    def open(self) -> LocalFile:
        """Open the tar; OSError if that fails."""
        return _open(self.path)

    def stamp(self) -> tuple[int, str]:
        """Return (bytes, version) from one stat; OSError if that fails."""
        status = self.path.stat()
        return status.st_size, _version(status)

    def index_bytes(self) -> bytes | None:
        """Return the file TAR.index, None if it is absent or cannot be read."""
        path = self.path.with_name(self.path.name + INDEX)
        try:
            return path.read_bytes() if path.stat().st_size <= LARGEST_INDEX else None
        except OSError:
            return None

    def expected(self) -> tuple[int, str] | None:
        """Return the manifest's (bytes, sha256), if there is one."""
        return (self.size, self.sha256) if self.size >= 0 else None


@dataclass(frozen=True)
class LocalStore:
    """A folder."""

    folder: Path

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.folder)

    def read_bytes(self, name: str) -> bytes:
        """Return a whole file; OSError if it cannot be read."""
        return (self.folder / name).read_bytes()

    def open(self, name: str) -> LocalFile:
        """Open a file; OSError if that fails."""
        return _open(self.folder / name)

    def size(self, name: str) -> int:
        """Return the bytes of a file; OSError if it is not there."""
        return (self.folder / name).stat().st_size

    def shard(self, name: str, size: int, sha256: str) -> LocalShard:
        """Return the place of a shard."""
        return LocalShard(self.folder / name, size, sha256)


def as_place(shard: Path | ShardPlace) -> ShardPlace:
    """Return the place of a shard that is given by its path or by its place."""
    return LocalShard(shard) if isinstance(shard, Path) else shard


def _open(path: Path) -> LocalFile:
    return LocalFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path.name)


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"
