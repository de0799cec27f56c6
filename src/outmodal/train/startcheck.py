"""Do all ranks start alike? Asked once, at the start: later a difference is a riddle or a hang."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import outmodal
from outmodal.data.opening import open_data, shown_data
from outmodal.data.stream import StreamConfig
from outmodal.errors import UserError
from outmodal.train import gather
from outmodal.train.runfolder import differences
from outmodal.train.together import on_all, on_main, shared_error

_REMEDIES = {
    "configuration": "start all ranks with the same recipe and overrides",
    "outmodal": "install the same code on every node",
    "torch": "install the same version on every node",
    "data set": "let every node see the same files at this path",
}
_LOCKED = ".lock"
_LOOKS = 20  # for a file that a network file system shows late
_PAUSE = 0.25  # seconds


def check_alike(config_text: str) -> None:
    """Compare configuration, code and versions of all ranks. Collective.

    Raises:
        UserError: They differ; names the first rank that does, its host, what, and the remedy.
    """
    own = {
        "configuration": _hash(config_text.encode()),
        "outmodal": f"{outmodal.__version__} ({source_hash()[:12]})",
        "torch": metadata.version("torch"),
    }
    found = _first_difference(own)
    if found is None:
        return
    rank, place, key, there, here = found
    detail = f"{there} instead of {here}"
    if key == "configuration":
        texts = gather.all_gather_objects(config_text if gather.world().rank in (0, rank) else "")
        detail = "; ".join(_changed(texts[0], texts[rank])) or "the order of its keys"
    raise shared_error(
        f"rank {rank} on {place} has another {key} than rank 0: {detail}. {_sentence(key)}"
    )


def check_visible(root: Path, data: StreamConfig) -> None:
    """See that every rank sees the run folder and the same data set. Collective.

    Args:
        root: The run's folder, held by the main process.
        data: What names the data set, or the data sets of a mixture.

    Raises:
        UserError: One does not; names its rank, its host and the remedy.
    """
    held = on_main(lambda: _read(root / _LOCKED))
    on_all(lambda: _see_folder(root, held))
    fingerprint = on_all(lambda: open_data(data).fingerprint())
    found = _first_difference({"data set": fingerprint})
    if found is not None:
        rank, place, key, _, _ = found
        raise shared_error(
            f"rank {rank} on {place} finds another data set at {shown_data(data)} than rank 0: the "
            f"manifests differ. {_sentence(key)}"
        )


@cache
def source_hash() -> str:
    """Hash over names and contents of the installed package's source files."""
    package = Path(outmodal.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".yaml")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _first_difference(own: Mapping[str, str]) -> tuple[int, str, str, str, str] | None:
    """(rank, host, key, its value, rank 0's value) of the first rank that differs from rank 0."""
    records: Sequence[Any] = gather.all_gather_objects([socket.gethostname(), dict(own)])
    first = records[0][1]
    for rank, (place, record) in enumerate(records):
        for key in own:
            if record.get(key) != first[key]:
                return rank, place, key, str(record.get(key)), first[key]
    return None


def _see_folder(root: Path, held: str) -> None:
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        if _read(root / _LOCKED) == held:
            break
    else:
        raise UserError(
            f"run folder {root} is not the one that rank 0 holds: choose a folder that all nodes "
            "share (--out)"
        )
    if not os.access(root, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write the run folder {root}: make it writable there, or choose another "
            "with --out"
        )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


def _changed(first: str, other: str) -> list[str]:
    """Keys in which two configurations differ, those that may change between runs included."""
    return [
        f"{key} is {there!r} there, {here!r} on rank 0"
        for key, here, there in differences(first, other)
    ]


def _sentence(key: str) -> str:
    remedy = _REMEDIES[key]
    return remedy[0].upper() + remedy[1:]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
