"""Whole shards on a node's own disk, shared by all processes there, within a limit.

    FOLDER/shards/<sha256>.tar               what is kept; changed at its last use
    FOLDER/coming/<sha256>.<bytes>.<id>      being fetched; locked by the process that fetches it
    FOLDER/locks/<two digits>, FOLDER/lock   locks of shards and of the whole folder

A shard is fetched by one process while the others wait for it. It gets its name when all of it is
there and has the manifest's checksum. Room is made, least recently used first, before the first
byte comes, and what is being fetched counts in full: the limit holds at any time. The kernel
lets go of the locks of a process that died, and the next one removes what it left. A shard that
is removed while a process reads it stays readable there until that process closes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from outmodal.data.store import ChangedError, StoreError
from outmodal.data.store_config import RemoteConfig
from outmodal.data.transport import Answer, Hiccup, transport, tries

_TOUCH = 30.0  # seconds between two notes of a shard's use
_POLL = 0.05
_log = logging.getLogger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True)
class Download:
    """A shard that may have to be fetched.

    Attributes:
        url: Its address.
        size, sha256: What the manifest says.
        config: Tries and times.
    """

    url: str
    size: int
    sha256: str
    config: RemoteConfig


class _DiskError(Exception):
    """The disk refused; kept apart from the errors of the network."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Held(NamedTuple):
    """A shard in the folder."""

    used: float
    size: int
    path: Path


class DiskCache:
    """The cache in one folder.

    Args:
        folder: Made if it is not there. It must be on a disk of this node.
        limit: Bytes that its files never exceed together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder.expanduser(), limit
        self._shards, self._coming = self.folder / "shards", self.folder / "coming"

    def open(self, wanted: Download) -> int | None:
        """Return a handle of the shard, which is fetched if it is not there.

        None, with one warning, where it cannot be kept: it is larger than the limit, the disk is
        full, or another process fetches it and does not get on. Raises ChangedError, an OSError,
        if what the server gives is not what the manifest says, also the second time;
        FileNotFoundError; StoreError for a server or a folder that cannot be used.
        """
        try:
            held = self._held(wanted)
            if held is not None:
                return held
            if wanted.size > self.limit:
                return self._give_up(wanted, f"larger than the limit of {self.limit} bytes")
            for folder in (self._shards, self._coming, self.folder / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
            return self._fetch(wanted)
        except _DiskError as error:
            return self._give_up(wanted, f"the disk says: {error.error.strerror}")
        except (FileNotFoundError, ChangedError):
            raise
        except OSError as error:
            raise StoreError(
                f"data.remote.cache {self.folder}: {error.strerror}; name a folder that can be "
                "written, or none"
            ) from None

    def usage(self) -> int:
        """Return the bytes of everything kept, and of everything that is coming in full."""
        coming = sum(_promised(p) for p in _files(self._coming))  # first: it may get its name
        return coming + sum(h.size for h in self._list())

    def _held(self, wanted: Download) -> int | None:
        """Open a shard that is there; one of the wrong size is removed."""
        path = self._path(wanted)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        status = os.fstat(handle)
        if status.st_size != wanted.size:
            os.close(handle)
            path.unlink(missing_ok=True)
            return None
        if time.time() - status.st_mtime > _TOUCH:
            _touch(path)
        return handle

    def _path(self, wanted: Download) -> Path:
        return self._shards / f"{wanted.sha256}.tar"

    def _fetch(self, wanted: Download) -> int | None:
        """Fetch the shard, or wait until another process has."""
        with self._lock_of(wanted) as mine:
            held = self._held(wanted)
            if held is not None or not mine:
                return held if held is not None else self._give_up(wanted, "nobody fetches it")
            partial = self._reserve(wanted)
            if partial is None:
                return self._give_up(wanted, "everything else there is being fetched")
            try:
                return self._receive(wanted, partial)
            finally:
                partial.close()

    @contextmanager
    def _lock_of(self, wanted: Download) -> Iterator[bool]:
        """Hold the lock of a shard. False if its holder does not get on for longer than a
        request may take."""
        patience = _patience(wanted.config)
        with open(self.folder / "locks" / wanted.sha256[:2], "wb") as lock:
            last, since = -1, time.monotonic()
            while not (mine := _try_lock(lock.fileno())):
                got = self._progress()
                if got != last:
                    last, since = got, time.monotonic()
                if time.monotonic() - since > patience:
                    break
                time.sleep(_POLL)
            try:
                yield mine
            finally:
                if mine:
                    fcntl.flock(lock.fileno(), fcntl.LOCK_UN)

    def _progress(self) -> int:
        """Return a number that changes while anything is being fetched."""
        return hash(tuple(sorted((p.name, _size(p)) for p in _files(self._coming))))

    def _reserve(self, wanted: Download) -> _Partial | None:
        """Make room, and the file that takes it; None if what is coming leaves no room."""
        with open(self.folder / "lock", "wb") as lock:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
            try:
                coming = 0
                for path in _files(self._coming):
                    coming += 0 if _removed_if_left(path) else _promised(path)
                if not self._evict(self.limit - coming - wanted.size):
                    return None
                name = f"{wanted.sha256}.{wanted.size}.{uuid.uuid4().hex[:12]}"
                return _Partial(self._coming / name)
            finally:
                fcntl.flock(lock.fileno(), fcntl.LOCK_UN)

    def _evict(self, room: int) -> bool:
        """Remove the least recently used shards until the rest takes at most `room` bytes."""
        held = sorted(self._list())
        total = sum(h.size for h in held)
        if room < 0:
            return False
        for oldest in held:
            if total <= room:
                break
            oldest.path.unlink(missing_ok=True)
            total -= oldest.size
        return True

    def _list(self) -> list[_Held]:
        found = []
        for path in _files(self._shards):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process removed it
            found.append(_Held(status.st_mtime, status.st_size, path))
        return found

    def _receive(self, wanted: Download, partial: _Partial) -> int:
        """Fetch into `partial`, check, give it its name, and return a handle."""
        scheme = wanted.url.partition(":")[0]
        found = ""
        for _ in range(2):
            into = _Sink(wanted, partial)
            tries(
                lambda into=into: transport(scheme, wanted.config).get(  # type: ignore[misc]
                    wanted.url, into.at, None, into
                ),
                wanted.url,
                wanted.config,
                lambda into=into: into.at,  # type: ignore[misc]
            )
            found = into.digest.hexdigest()
            if found == wanted.sha256:
                return partial.commit(self._path(wanted))
            _log.warning("%s: its checksum is not the manifest's; fetching it again", wanted.url)
        raise ChangedError(
            f"its sha256 is {found}, the manifest says {wanted.sha256}, fetched twice: "
            "it was changed or damaged on the server; restore it there"
        )

    def _give_up(self, wanted: Download, why: str) -> int | None:
        """Warn once that shards are read from the network instead."""
        if str(self.folder) not in _warned:
            _warned.add(str(self.folder))
            _log.warning(
                "%s is not kept in data.remote.cache %s (%s); it is read from the network",
                wanted.url, self.folder, why,
            )  # fmt: skip
        return None


class _Partial:
    """A file that is being filled, locked as long as its process lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _DiskError(error) from None
        fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data: bytes) -> None:
        """Append; _DiskError if that fails."""
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self.handle, view) :]
        except OSError as error:
            raise _DiskError(error) from None

    def clear(self) -> None:
        """Begin again."""
        os.ftruncate(self.handle, 0)
        os.lseek(self.handle, 0, os.SEEK_SET)

    def commit(self, path: Path) -> int:
        """Give the file its name, and return a handle for reading it."""
        try:
            os.fsync(self.handle)
            os.replace(self.path, path)
            return os.open(f"/proc/self/fd/{self.handle}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _DiskError(error) from None

    def close(self) -> None:
        """Remove the file, unless it has its name, and let go of it."""
        self.path.unlink(missing_ok=True)
        fcntl.flock(self.handle, fcntl.LOCK_UN)
        os.close(self.handle)


class _Sink:
    """Receives a shard into a file; it goes on where a request broke, if that is still the same."""

    def __init__(self, wanted: Download, partial: _Partial) -> None:
        self._wanted, self._partial = wanted, partial
        self._begin()

    def _begin(self) -> None:
        self._partial.clear()
        self.digest = hashlib.sha256()
        self.at, self.tag = 0, ""

    def start(self, answer: Answer) -> None:
        """Go on, or begin again where the server cannot or the content is another."""
        if answer.begin != self.at or (self.at and answer.tag != self.tag):
            self._begin()
            if answer.begin:
                raise Hiccup("the content changed on the way")
        self.tag = answer.tag
        if answer.total not in (-1, self._wanted.size):
            raise ChangedError(f"has {answer.total} bytes, the manifest says {self._wanted.size}")

    def write(self, data: bytes) -> None:
        """Append and hash."""
        if self.at + len(data) > self._wanted.size:
            raise ChangedError(f"has more than the {self._wanted.size} bytes of the manifest")
        self._partial.write(data)
        self.digest.update(data)
        self.at += len(data)


def _patience(config: RemoteConfig) -> float:
    """Seconds without a byte after which a download is taken for one that does not get on."""
    return 2 * config.timeout + config.connect_timeout


def _files(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _promised(path: Path) -> int:
    """Return the bytes that a coming file will have, from its name."""
    parts = path.name.split(".")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else max(0, _size(path))


def _removed_if_left(path: Path) -> bool:
    """Remove a coming file whose process is gone. Called with the folder's lock held."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _try_lock(handle):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError as error:
        _log.debug("%s: its use is not noted: %s", path, error)
