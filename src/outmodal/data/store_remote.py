"""Data sets with an address: http(s)://server/folder, s3://bucket/folder, file:///folder."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from outmodal.closing import Closing
from outmodal.data.disk_cache import DiskCache, Download
from outmodal.data.store import ChangedError, ShardFile, Store
from outmodal.data.store_config import RemoteConfig, as_chosen
from outmodal.data.store_local import INDEX, LARGEST_INDEX, LocalFile, LocalStore
from outmodal.data.transport import (
    DeniedError,
    ask,
    compare_tags,
    fetch_range,
    fetch_whole,
    transport,
)
from outmodal.errors import UserError, nearest

SCHEMES = ("http", "https", "s3")
SWEEP = 8 << 20
"""Bytes of one request at most, unless a sample is larger."""

GAP = 256 << 10
"""Bytes that cost less to read along than another request."""

LARGEST_FILE = 1 << 30
"""Manifests above this size are refused."""

_log = logging.getLogger(__name__)
_tags: dict[str, str] = {}
_tags_lock = threading.Lock()


def _after_fork() -> None:
    """A thread that does not run here may have held the lock."""
    global _tags_lock
    _tags_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def is_address(path: str | Path) -> bool:
    """Tell whether `path` is an address rather than a path of this machine."""
    return "://" in str(path) or str(path).startswith("pipe:")


def store_at(address: str, config: RemoteConfig | None = None) -> Store:
    """Return the store at an address; nothing is requested yet.

    Raises UserError for an address of an unknown kind, and for one that holds credentials.
    """
    config = as_chosen(config)
    if address.startswith("pipe:"):
        from outmodal.data.store_pipe import PipeStore  # a rare case

        return PipeStore(address, config)
    parts = urlsplit(address)
    scheme = parts.scheme.lower()
    if scheme == "file":
        return _local(address)
    shown = hide_credentials(address)
    if scheme not in SCHEMES:
        raise UserError(
            f"{shown}: '{scheme}' is no kind of address that can be read"
            f"{nearest(scheme, (*SCHEMES, 'file'))}"
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"{shown}: an address must not hold a user, a password, or anything behind ? or #: "
            "it is written into logs and configurations. Give credentials in the environment: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3, NETRC for http"
        )
    if not parts.netloc:
        raise UserError(f"{shown}: names no {'bucket' if scheme == 's3' else 'server'}")
    return RemoteStore(address.rstrip("/"), config)


def hide_credentials(address: str) -> str:
    """Return an address as messages may show it: without user, password and query."""
    parts = urlsplit(address)
    server = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=server, query="", fragment="").geturl()


def _local(address: str) -> LocalStore:
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{address}: names another machine; write file:///folder")
    return LocalStore(Path(unquote(parts.path)))


class RemoteFile(Closing):
    """A remote shard, read stretch by stretch. Any number of threads may share it."""

    def __init__(self, url: str, size: int, config: RemoteConfig, version: str) -> None:
        self.name, self.size, self._url, self._config = url.rpartition("/")[2], size, url, config
        self._version = version

    @property
    def version(self) -> str:
        """The checksum in the manifest. Changes are found in the answers, by `pread`."""
        return self._version

    def pread(self, size: int, offset: int) -> bytes:
        """Return the bytes [offset, offset + size), fewer only at the end.

        Raises ChangedError, an OSError, if the server's file is not what it was before or has
        not the size that the manifest says; FileNotFoundError, StoreError.
        """
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        scheme = self._url.partition(":")[0]
        data, answer = fetch_range(
            transport(scheme, self._config), self._url, offset, end, known_tag(self._url),
            self._config,
        )  # fmt: skip
        if answer.total not in (-1, self.size):
            raise ChangedError(f"has {answer.total} bytes, the manifest says {self.size}")
        remember_tag(self._url, answer.tag)
        return data

    def close(self) -> None:
        """Nothing is held open."""


class CachedFile(LocalFile):
    """A shard in the cache folder: its content was checked when it came, and never changes."""

    def __init__(self, handle: int, name: str, sha256: str) -> None:
        super().__init__(handle, name)
        self._sha256 = sha256

    @property
    def version(self) -> str:
        """The checksum."""
        return self._sha256


@dataclass(frozen=True)
class RemoteShard:
    """A shard at an address.

    Attributes:
        url: Address of the tar.
        size, sha256: What the manifest says.
        config: How to read it.
    """

    url: str
    size: int
    sha256: str
    config: RemoteConfig = field(default_factory=RemoteConfig)

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rpartition("/")[2]

    @property
    def where(self) -> str:
        """The address."""
        return self.url

    @property
    def far(self) -> bool:
        """Yes, unless whole shards are kept here."""
        return not self.config.cache

    @property
    def gap(self) -> int:
        """What costs less than another request; nothing where whole shards are kept here."""
        return GAP if self.far else 0

    @property
    def sweep(self) -> int:
        """Bytes of one request."""
        return SWEEP if self.far else 1 << 20

    def open(self) -> ShardFile:
        """Return the shard in the cache folder, fetched if need be, else the remote one.

        Raises OSError for a shard that is absent or is not the manifest's, StoreError for a
        server or a folder that cannot be used.
        """
        if self.config.cache:
            cache = DiskCache(Path(self.config.cache), int(self.config.cache_gb * 1e9))
            handle = cache.open(Download(self.url, self.size, self.sha256, self.config))
            if handle is not None:
                return CachedFile(handle, self.name, self.sha256)
        return RemoteFile(self.url, self.size, self.config, self.sha256)

    def stamp(self) -> tuple[int, str]:
        """Return the manifest's (bytes, checksum), without a request."""
        return self.size, self.sha256

    def index_bytes(self) -> bytes | None:
        """Return the index file beside the shard; None if the server has none to give."""
        url = self.url + INDEX
        scheme = self.url.partition(":")[0]
        try:
            return fetch_whole(transport(scheme, self.config), url, LARGEST_INDEX, self.config)
        except (FileNotFoundError, DeniedError):  # a bucket that is not to be listed says "denied"
            return None

    def expected(self) -> tuple[int, str] | None:
        """Return the manifest's (bytes, sha256)."""
        return self.size, self.sha256


@dataclass(frozen=True)
class RemoteStore:
    """A folder at an address.

    Attributes:
        where: The address.
        config: How to read it.
    """

    where: str
    config: RemoteConfig = field(default_factory=RemoteConfig)

    @property
    def folder(self) -> None:
        """None: the folder is not one of this machine."""
        return None

    def read_bytes(self, name: str) -> bytes:
        """Return a whole small file; FileNotFoundError, StoreError."""
        scheme, url = self.where.partition(":")[0], f"{self.where}/{name}"
        return fetch_whole(transport(scheme, self.config), url, LARGEST_FILE, self.config)

    def open(self, name: str) -> RemoteFile:
        """Open a file, from one request; errors as in `read_bytes`."""
        return RemoteFile(f"{self.where}/{name}", self.size(name), self.config, "")

    def size(self, name: str) -> int:
        """Return the bytes of a file, from one request; errors as in `read_bytes`."""
        scheme, url = self.where.partition(":")[0], f"{self.where}/{name}"
        answer = ask(transport(scheme, self.config), url, self.config)
        if answer.total < 0:
            raise ChangedError("its server does not say how many bytes it has")
        return answer.total

    def shard(self, name: str, size: int, sha256: str) -> RemoteShard:
        """Return the place of a shard."""
        return RemoteShard(f"{self.where}/{name}", size, sha256, self.config)


def known_tag(url: str) -> str:
    """Return the tag that this process first saw of a file, "" before that."""
    return _tags.get(url, "")


def remember_tag(url: str, tag: str) -> None:
    """Keep the first tag of a file; ChangedError if another was seen before."""
    with _tags_lock:
        compare_tags(_tags.setdefault(url, tag), tag)
