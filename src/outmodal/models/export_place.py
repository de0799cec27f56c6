"""Where an export goes: a folder that is the old export or the new one at every moment.

The new folder is filled under another name beside the old one and swapped with it in one step of
the file system. What a killed export leaves behind is cleared away by the next one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outmodal.data.cache import sync_folder
from outmodal.errors import UserError
from outmodal.models.export_folder import RECORD

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' fcntl.h
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def refuse_taken(out: Path, force: bool) -> None:
    """Raise UserError unless `out` is free, or an export that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UserError(f"{out} exists: choose another folder, or replace it with --force")
    if not (out / RECORD).is_file():
        raise UserError(
            f"{out} is no export of outmodal (it has no {RECORD}), so it is not replaced: "
            "choose another folder, or remove it yourself"
        )


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn a failure of the file system into a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the export {out}: {error.strerror or error}; free space or choose "
            "another folder, and run the same command again"
        ) from error


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, removed at the end if it is still there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = _beside(out, "partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Make the staged folder durable and put it at `out`; what was there goes.

    Where the file system cannot swap two folders, `out` is missing between two renames; a process
    that is killed just there leaves the old export beside, and the next one puts it back.
    """
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)
    if not out.exists():
        os.rename(folder, out)
    elif not _exchanged(folder, out):
        old = _beside(out, "old")
        os.rename(out, old)
        os.rename(folder, out)
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(out.parent)


def clear_leftovers(out: Path) -> None:
    """Remove what killed exports to `out` left on this host, and put back an export that one of
    them had moved aside."""
    host = re.escape(socket.gethostname())
    pattern = re.compile(rf"\.{re.escape(out.name)}\.{host}-(\d+)\.(partial|old)")
    for path in sorted(out.parent.glob(f".{out.name}.*")) if out.parent.is_dir() else ():
        found = pattern.fullmatch(path.name)
        if found is None or _alive(int(found[1])):
            continue
        if found[2] == "old" and not out.exists():
            os.rename(path, out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _beside(out: Path, what: str) -> Path:
    return out.parent / f".{out.name}.{socket.gethostname()}-{os.getpid()}.{what}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _exchanged(one: Path, two: Path) -> bool:
    """Swap two paths in one step; False where the system has no such step."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    paths = os.fsencode(one), os.fsencode(two)
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(two))
