"""Checkpoints that are complete or absent: written aside, hashed, renamed, verified when read.

    checkpoints/step-00001000/weights.safetensors     fp32 masters and buffers by name
                             /optimizer.safetensors   "exp_avg/NAME", "exp_avg_sq/NAME", "step/NAME"
                             /ema.safetensors         averaged weights, where there is an EMA
                             /method.safetensors      sets, queues and averages of the method
                             /rng.safetensors         generator states of each rank
                             /state.json              step, epoch, position, what wrote it
                             /manifest.json           bytes and sha256 of the others; written last
    checkpoints/latest                                name of the newest complete one

Nothing in it depends on how many ranks wrote it, or on the sharding.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from outmodal.data.cache import sync_folder, write_atomic
from outmodal.errors import UserError

_log = logging.getLogger(__name__)

FORMAT = 1
_STEP = re.compile(r"step-(\d{8,})")
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        tensors: Part ("weights", "optimizer", ...) -> name -> CPU tensor. Empty parts are left out.
        state: JSON-able position and provenance.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


class CheckpointStore:
    """The folder of a run's checkpoints. Only the main process uses one, except for `read`.

    Args:
        root: The folder.
        keep: How many of the newest stay.
        keep_every: Those whose step it divides stay as well, as milestones; 0 is none.
    """

    def __init__(self, root: Path, keep: int = 2, keep_every: int = 0) -> None:
        self.root, self.keep, self.keep_every = root, max(1, keep), keep_every

    def prepare(self) -> None:
        """Make the folder, and remove what killed saves left behind."""
        with self._explained("cannot prepare"):
            self.root.mkdir(parents=True, exist_ok=True)
            for left in self.root.glob(".tmp-*"):
                shutil.rmtree(left)

    def save(
        self, step: int, snapshot: Snapshot, allowed: Callable[[], None] = lambda: None
    ) -> Path:
        """Write a checkpoint, point `latest` at it, then remove those that need not stay.

        Args:
            step: Optimizer steps done.
            snapshot: What to write.
            allowed: Called once all is written, before it becomes a checkpoint; may raise.

        Raises:
            UserError: The file system refuses it; the checkpoints before it are intact.
        """
        name = f"step-{step:08d}"
        partial, final = self.root / f".tmp-{name}", self.root / name
        with self._explained(f"cannot save checkpoint {name}"):
            try:
                self._write(partial, snapshot)
                allowed()
                if final.exists():  # only ever one that did not verify
                    os.rename(final, self.root / f".tmp-replaced-{name}")
                os.rename(partial, final)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            sync_folder(self.root)
            write_atomic(self.root / "latest", f"{name}\n".encode())
            self._prune()
        return final

    def steps(self) -> list[tuple[int, Path]]:
        """Checkpoints by step, newest first; whether they verify is another question."""
        found = [(_STEP.fullmatch(p.name), p) for p in self.root.glob("step-*")]
        return sorted(((int(m[1]), p) for m, p in found if m), reverse=True)

    def newest(self, repair: bool = False) -> Path | None:
        """Return the newest checkpoint that verifies; None where none was ever written.

        A damaged one is reported.

        Args:
            repair: Move damaged ones aside (damaged-step-...), so that they are not taken for
                ones to keep.

        Raises:
            UserError: There are checkpoints and none verifies.
        """
        problems: list[str] = []
        for _, path in self.steps():
            problem = verify(path)
            if problem is None:
                for bad in problems:
                    _log.warning("%s; going on from %s, the one before", bad, path)
                if repair:
                    self._set_aside(path)
                return path
            problems.append(f"checkpoint {path} cannot be read: {problem}")
        if problems:
            raise UserError(
                f"no checkpoint in {self.root} can be read: {'; '.join(problems)}. Restore one "
                f"from a copy, or remove {self.root} to start over"
            )
        return None

    def _set_aside(self, good: Path) -> None:
        for _, path in self.steps():
            if path.name > good.name:
                target = self.root / f"damaged-{path.name}"
                shutil.rmtree(target, ignore_errors=True)
                os.rename(path, target)

    def _write(self, folder: Path, snapshot: Snapshot) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for part, tensors in snapshot.tensors.items():
            if tensors:
                _save_tensors(dict(sorted(tensors.items())), folder / f"{part}.safetensors")
        write_json(folder / "state.json", snapshot.state)
        files = {p.name: _record(p) for p in sorted(folder.iterdir())}
        write_json(folder / "manifest.json", {"format": FORMAT, "files": files})
        sync_folder(folder)

    def partial_bytes(self) -> int:
        """Bytes on the disk of the checkpoint that is being written; 0 where there is none."""
        total = 0
        for file in self.root.glob(".tmp-step-*/*"):
            with suppress(FileNotFoundError):  # just renamed
                total += file.stat().st_size
        return total

    def _prune(self) -> None:
        for step, path in self.steps()[self.keep :]:
            if self.keep_every and step % self.keep_every == 0:
                continue
            doomed = self.root / f".tmp-old-{path.name}"
            os.rename(path, doomed)
            shutil.rmtree(doomed)
        for left in self.root.glob(".tmp-replaced-*"):
            shutil.rmtree(left)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn a full disk or a refused write into a sentence with the remedy."""
        try:
            yield
        except OSError as error:
            if error.errno in _NO_ROOM:
                free = shutil.disk_usage(_existing(self.root)).free
                raise UserError(
                    f"{what} in {self.root}: no room ({error.strerror}; "
                    f"{free / 2**20:.0f} MiB free on the disk). The checkpoints before it are "
                    "intact: free space or lift the quota, then run the same command again"
                ) from error
            raise UserError(
                f"{what} in {self.root}: {error.strerror or error}; make the folder writable, "
                "then run the same command again"
            ) from error


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # it hides the system's error number in its text
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with stable bytes, safely on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _record(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, naming the file; None where nothing is."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"manifest.json has format {manifest['format']}, this version reads {FORMAT}"
        for name, record in manifest["files"].items():
            path = folder / Path(name).name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != record["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {record['bytes']}"
            if _sha256(path) != record["sha256"]:
                return f"{name} has another sha256 than when it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json or a file cannot be read ({error})"
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """Return state.json of a verified checkpoint."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state


def read(folder: Path, parts: Iterable[str]) -> Snapshot:
    """Read parts of a verified checkpoint; parts that it does not have come back empty."""
    tensors = {}
    for part in parts:
        path = folder / f"{part}.safetensors"
        tensors[part] = load_file(path) if path.exists() else {}
    return Snapshot(tensors, read_state(folder))
