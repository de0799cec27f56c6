"""The data set inside the package: unpacked into the cache on first use, verified on every use.

The archive is a gzipped tar of `dataset.json`, first, and of the shards that it names. Any number
of processes may ask for it at once: each unpacks into a folder of its own, one of them gives its
folder the final name, the others discard theirs. A damaged file in the cache is replaced.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from outmodal.data.cache import cache_dir
from outmodal.data.manifest import EMBEDDED, MANIFEST, Dataset, open_dataset, parse_manifest
from outmodal.errors import UserError

ARCHIVE = f"{EMBEDDED}.tar.gz"
"""The archive's name in the package's folder data/embedded_files."""

_LARGEST_MEMBER = 64 << 20
_BROKEN = (tarfile.TarError, zlib.error, OSError, EOFError, ValueError, UserError)


def embedded_dataset() -> Dataset:
    """Return the data set that is shipped with outmodal, from its folder in `cache_dir()`.

    Raises UserError if the cache cannot be written, or the package's archive is damaged.
    """
    packed = _read_archive()
    digest = hashlib.sha256(packed).hexdigest()
    folder = cache_dir() / "datasets" / f"{EMBEDDED}-{digest[:16]}"
    wanted = _wanted(packed)
    if _damaged(folder, wanted):
        _install(_unpack(packed, wanted), folder, wanted)
    return open_dataset(folder)


def _read_archive() -> bytes:
    file = resources.files("outmodal.data") / "embedded_files" / ARCHIVE
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file} is missing from this installation; install it again") from None


def _wanted(packed: bytes) -> dict[str, str]:
    """Return file name -> sha256 of all that belongs into the data set's folder."""
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r|gz") as tar:
            first = tar.next()
            description = b"" if first is None else _content(tar, first)
        manifest = parse_manifest(json.loads(description), MANIFEST)
    except _BROKEN as error:
        raise _archive_damaged(error) from None
    shards = (shard for split in manifest.splits.values() for shard in split.shards)
    return {
        MANIFEST: hashlib.sha256(description).hexdigest(),
        **{shard.file: shard.sha256 for shard in shards},
    }


def _unpack(packed: bytes, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """Return the contents of the wanted files; no other member is looked at."""
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r|gz") as tar:
            for member in tar:
                if member.name in wanted:
                    files[member.name] = _content(tar, member)
    except _BROKEN as error:
        raise _archive_damaged(error) from None
    for name, digest in wanted.items():
        if hashlib.sha256(files.get(name, b"")).hexdigest() != digest:
            raise _archive_damaged(f"{name} is not what the manifest says")
    return files


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    if stream is None or member.size > _LARGEST_MEMBER:
        raise ValueError(f"{member.name} is not a file of at most {_LARGEST_MEMBER} bytes")
    return stream.read()


def _archive_damaged(why: object) -> UserError:
    return UserError(f"the package's {ARCHIVE} is damaged ({why}); install outmodal again")


def _damaged(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Return the names of the files that are missing or not what they should be."""
    return [name for name, digest in wanted.items() if _digest(folder / name) != digest]


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _install(files: Mapping[str, bytes], folder: Path, wanted: Mapping[str, str]) -> None:
    """Put `files` into `folder`: all at once if it is not there, else those that are damaged."""
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        staging.mkdir(parents=True)
        for name, content in files.items():
            (staging / name).write_bytes(content)
        if not _renamed(staging, folder):
            for name in _damaged(folder, wanted):
                os.replace(staging / name, folder / name)
    except OSError as error:
        raise UserError(
            f"cannot unpack the embedded data set into {folder} ({error.strerror or error}); "
            "free space, or set OUTMODAL_CACHE to a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _renamed(staging: Path, folder: Path) -> bool:
    """Give `staging` its final name; False if another process, or an earlier run, has done it."""
    try:
        os.rename(staging, folder)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True
