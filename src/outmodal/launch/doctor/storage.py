"""The disk that runs are written to, and samples of the data sets that they read."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

from outmodal.data.decode import DecodeError, decode
from outmodal.data.manifest import Dataset, SplitInfo, open_dataset
from outmodal.data.shards import ShardDamage, read_shard
from outmodal.errors import UserError
from outmodal.launch.doctor.line import Line

_MB, _GB = 1 << 20, 1 << 30
_SLOW = 50.0  # MB/s below which a checkpoint of a base-size model takes half a minute
_PIECE = 32 * _MB
_SAMPLES = 8


def disk_line(out: Path, size: int = _PIECE) -> Line:
    """Space and speed of the run folder's disk: a file of `size` bytes is written and synced."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
        rate = _write_rate(folder, size) / _MB
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free space or lift the quota" if full else "choose another --out"
        return Line("disk", "failure", f"{folder}: {error.strerror}", remedy)
    found = f"{free / _GB:.0f} GB free in {folder}, {rate:.0f} MB/s written and synced"
    if free < _GB:
        return Line("disk", "warning", found, "free some space: checkpoints may not fit")
    if rate < _SLOW:
        remedy = "checkpoints take long: a faster --out, or a larger engine.checkpoint_every"
        return Line("disk", "warning", found, remedy)
    return Line("disk", "ok", found)


def _write_rate(folder: Path, size: int) -> float:
    data = os.urandom(_MB)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".outmodal-doctor-") as file:
        begin = time.perf_counter()
        for _ in range(max(1, size // _MB)):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return size / max(time.perf_counter() - begin, 1e-9)


def data_lines(path: str) -> list[Line]:
    """For each split of a data set: its size, and whether its first samples can be read."""
    name = f"data {path}"
    try:
        dataset = open_dataset(path)
    except UserError as error:
        return [Line(name, "failure", "cannot be opened", str(error))]
    return [_split(name, dataset, split, info) for split, info in dataset.manifest.splits.items()]


def _split(name: str, dataset: Dataset, split: str, info: SplitInfo) -> Line:
    name = f"{name} {split}"
    if not info.shards:
        return Line(name, "warning", "no samples", "build the split, or leave it out")
    begin = time.perf_counter()
    shard = info.shards[0]
    try:
        count = _read(dataset, dataset.shard_path(shard), min(_SAMPLES, shard.samples))
    except (ShardDamage, DecodeError, OSError) as error:
        remedy = f"outmodal data check {dataset.root}"
        return Line(name, "failure", f"{shard.file}: {error}", remedy)
    spent = 1000 * (time.perf_counter() - begin) / max(1, count)
    found = (
        f"{info.samples} samples in {len(info.shards)} shards; {count} read, {spent:.1f} ms each"
    )
    return Line(name, "ok", found)


def _read(dataset: Dataset, path: Path, stop: int) -> int:
    count = 0
    for _, _, members in read_shard(path, stop=stop):
        for modality, spec in dataset.manifest.modalities.items():
            data = members.get(f"{modality}.{spec.ext}")
            if data is not None:
                decode(spec, data)
        count += 1
    return count
