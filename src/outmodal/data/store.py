"""Where the files of a data set lie: a folder of this machine, or an address.

Code that reads takes a `ShardPlace` and asks it for a `ShardFile`; code that opens data sets takes
a `Store`. `store_local` and `store_remote` hold what implements them. All three are small,
picklable and without open handles, except the `ShardFile`, which belongs to the process and the
thread that opened it.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from outmodal.errors import UserError


class StoreError(UserError):
    """A place cannot be read: it is absent, refuses, or does not answer. Exit code 2."""


class ChangedError(OSError):
    """A file became another one while it was read."""


class ShardFile(Protocol):
    """One open shard.

    Attributes:
        name: File name, for messages.
        size: Bytes.
    """

    name: str
    size: int

    @property
    def version(self) -> str:
        """What changes when the file is replaced or rewritten, as far as the place can tell."""
        ...

    def pread(self, size: int, offset: int) -> bytes:
        """Return the bytes [offset, offset + size); fewer only at the end of the file.

        Raises OSError for a broken file and StoreError for a place that does not answer.
        """
        ...

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class ShardPlace(Protocol):
    """Where one shard lies. Frozen, hashable and picklable; equal places hold the same shard."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """File name, for messages."""
        ...

    @property
    def where(self) -> str:
        """Path or address, for messages."""
        ...

    @property
    def far(self) -> bool:
        """Whether every read goes over a network, so that much is better asked for at once."""
        ...

    @property
    def gap(self) -> int:
        """Bytes that are better read along than left out between two wanted stretches."""
        ...

    @property
    def sweep(self) -> int:
        """Bytes that one read asks for at most, unless a sample is larger."""
        ...

    def open(self) -> ShardFile:
        """Open the shard; OSError if it is absent or unreadable, StoreError as `pread`."""
        ...

    def stamp(self) -> tuple[int, str]:
        """Return (bytes, version) by the cheapest means, as `open` would find them."""
        ...

    def index_bytes(self) -> bytes | None:
        """Return the index file that lies beside the shard and may describe it, or None."""
        ...

    def expected(self) -> tuple[int, str] | None:
        """Return the (bytes, sha256) that the manifest says, None where there is none."""
        ...


class Store(Protocol):
    """A folder of shards with its manifest, on this machine or elsewhere."""

    @property
    def where(self) -> str:
        """Folder or address, as users write it."""
        ...

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one of this machine."""
        ...

    def read_bytes(self, name: str) -> bytes:
        """Return a whole small file; FileNotFoundError, OSError or StoreError."""
        ...

    def open(self, name: str) -> ShardFile:
        """Open a file; errors as in `read_bytes`."""
        ...

    def size(self, name: str) -> int:
        """Return the bytes of a file; errors as in `read_bytes`."""
        ...

    def shard(self, name: str, size: int, sha256: str) -> ShardPlace:
        """Return the place of a shard that the manifest describes so."""
        ...
