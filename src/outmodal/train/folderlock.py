"""One process writes a run's folder: a lock that says who holds it, and gives up dead holders.

The lock is the kernel's (flock): it ends with its process, whatever happened to that. Two cases
are left. Children may outlive a killed process and keep its lock open, and a job that SLURM
queued again may run elsewhere while a node that was cut off still holds the lock. Both are told
from what the holder wrote into the file, never from its age: clocks of two machines differ.
Whoever takes over puts a new file in place of the old one, and a holder whose file is gone
writes nothing any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outmodal.errors import UserError

_log = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP)
_PATIENCE = 1.0  # seconds that a process which just ended may need to let go


class FolderLock:
    """Holds a folder from its construction to `release`.

    Args:
        root: The folder.

    Raises:
        UserError: Another process holds it; the message names it.
        OSError: The lock's file cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, root / ".lock"
        end = time.monotonic() + _PATIENCE
        while (handle := self._try()) is None:
            if time.monotonic() > end:
                self._refuse_or_replace()
            time.sleep(0.1)
        self._handle = handle

    def check(self) -> None:
        """Raise UserError where another process has taken the folder over."""
        if not _same_file(self._handle, self._path):
            raise UserError(
                f"run folder {self._root} was taken over by {_shown(_read(self._path))}: this "
                "process leaves it alone"
            )

    def release(self) -> None:
        """Let go."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)  # children may hold copies of the handle
            os.close(self._handle)
            self._handle = -1

    def _try(self) -> int | None:
        """Return the handle of the locked file, None where another process has it."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not (_flock(handle) and _same_file(handle, self._path)):
                os.close(handle)
                return None
            _write(handle, _holder())
            if not _same_file(handle, self._path):  # replaced as its last holder's meanwhile
                os.close(handle)
                return None
        except OSError:
            os.close(handle)
            raise
        return handle

    def _refuse_or_replace(self) -> None:
        holder = _read(self._path)
        why = _gone(holder)
        if not why:
            raise UserError(
                f"run folder {self._root} is in use by {_shown(holder)}: wait for it, stop it, "
                "or choose another folder with --out"
            )
        _log.warning("run folder %s: taken over from %s (%s)", self._root, _shown(holder), why)
        with contextlib.suppress(FileNotFoundError):
            if _read(self._path) == holder:  # not one that was quicker
                os.unlink(self._path)


def _flock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("this file system has no locks: do not start two runs on one folder")
    return True


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _holder() -> dict[str, Any]:
    """What this process says of itself."""
    env = os.environ
    return {
        "host": socket.gethostname(),
        "kernel": _kernel(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "job": env.get("SLURM_JOB_ID", ""),
        "attempt": int(env.get("SLURM_RESTART_COUNT", "0") or 0),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _gone(holder: Mapping[str, Any]) -> str:
    """Why the holder cannot be alive; empty where it may be."""
    env = os.environ
    if holder.get("kernel") == _kernel():
        pid = int(holder["pid"])
        if _started(pid) != holder.get("started"):
            return "that process has ended"
    job, attempt = holder.get("job"), int(env.get("SLURM_RESTART_COUNT", "0") or 0)
    if job and job == env.get("SLURM_JOB_ID") and int(holder.get("attempt", 0)) < attempt:
        return "an earlier attempt of this job"
    return ""


def _kernel() -> str:
    """Tells where process numbers mean the same: this boot of this machine, and the container.
    Names of hosts are no proof: containers and images share them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {os.urandom(8).hex()}"


def _started(pid: int) -> str:
    """When the kernel started a process, in its own ticks; empty where there is none, or it has
    ended without being waited for. Tells a process from a later one with its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _shown(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another process"
    job = f", job {holder['job']}" if holder.get("job") else ""
    return f"process {holder['pid']} on {holder['host']}{job}, since {holder['since']} there"


def _read(path: Path) -> dict[str, Any]:
    """What the holder wrote; empty where that cannot be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return found if {"pid", "host", "since"} <= set(found) else {}
    except (OSError, ValueError, TypeError):
        return {}


def _write(handle: int, holder: Mapping[str, Any]) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, (json.dumps(holder) + "\n").encode(), 0)
    os.fsync(handle)


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn a refused write into a sentence with the remedy.

    Raises:
        UserError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the run folder {root} on {socket.gethostname()}: "
            f"{error.strerror or error}; free space or make it writable, or choose another with "
            "--out"
        ) from error
