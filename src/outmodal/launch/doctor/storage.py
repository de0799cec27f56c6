"""The disk that runs are written to, and samples of the data sets that they read."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from outmodal.data.batch import StreamSpec
from outmodal.data.decode import DecodeError, decode
from outmodal.data.epoch import epoch_use
from outmodal.data.manifest import Dataset, ShardInfo, SplitInfo
from outmodal.data.memory import memory_bound, memory_sentence
from outmodal.data.opening import open_data
from outmodal.data.shards import ShardDamage, read_shard
from outmodal.data.stream import StreamConfig
from outmodal.data.unindexed import unindexed_notice
from outmodal.errors import UserError
from outmodal.launch.doctor.line import Line

if TYPE_CHECKING:
    from outmodal.launch.config import RunConfig

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
    """For each split of a data set: its size, what an epoch uses of it, and whether its first
    samples can be read."""
    return _lines(f"data {path}", StreamConfig(path=path), fixed=False)


def recipe_lines(recipe: str) -> list[Line]:
    """The same for the data of a recipe, which may be a mixture, at the recipe's batch."""
    from outmodal.launch.config import load_config

    try:
        config = load_config(recipe)
    except UserError as error:
        return [Line(f"recipe {recipe}", "failure", "cannot be read", str(error))]
    lines = _lines(f"data of {recipe}", config.data, fixed=True)
    failed = any(line.status == "failure" for line in lines)
    return lines if failed else [*lines, _memory(recipe, config)]


def _memory(recipe: str, config: RunConfig) -> Line:
    """What the learners' data take in memory; what perceptors read comes on top."""
    name = f"data of {recipe} memory"
    dataset, data = open_data(config.data), config.data
    try:
        inputs = {c.modality: c.input.build(dataset, c.modality, None) for c in config.learners}
        specs = [StreamSpec("train", data.train_split, tuple(inputs), data.batch)]
        return Line(name, "ok", memory_sentence(memory_bound(dataset, inputs, data, specs)))
    except UserError as error:
        return Line(name, "failure", "a learner does not fit the data", str(error))


def _lines(name: str, config: StreamConfig, *, fixed: bool) -> list[Line]:
    """`fixed` is whether somebody chose the batch."""
    try:
        dataset = open_data(config)
        splits = dataset.manifest.splits.items()
        lines = [_split(name, dataset, split, info) for split, info in splits]
        filled = config.train_split in dataset.manifest.splits
        if filled and dataset.manifest.splits[config.train_split].samples:
            lines += _epoch(name, dataset, config, fixed)
    except UserError as error:
        return [Line(name, "failure", "cannot be opened", str(error))]
    return lines


def _epoch(name: str, dataset: Dataset, config: StreamConfig, fixed: bool) -> list[Line]:
    """What an epoch uses, and what is slow to begin with."""
    name = f"{name} {config.train_split}"
    use = epoch_use(dataset, config.train_split, config.batch)
    found = f"at data.batch={config.batch}, {use.sentence()}"
    lines = [Line(name, "ok", found)]
    if fixed and not use.used:
        remedy = f"use data.batch={use.samples} or less"
        lines = [Line(name, "warning", found, remedy)]
    slow = unindexed_notice(dataset, config.train_split)
    return [*lines, Line(name, "warning", *slow.split(": ", 1))] if slow else lines


def _split(name: str, dataset: Dataset, split: str, info: SplitInfo) -> Line:
    name = f"{name} {split}"
    if not info.samples:
        return Line(name, "warning", "no samples", "build the split, or leave it out")
    begin = time.perf_counter()
    shard = next(shard for shard in info.shards if shard.samples)
    try:
        count = _read(dataset, shard, min(_SAMPLES, shard.samples))
    except (ShardDamage, DecodeError, OSError) as error:
        remedy = f"outmodal data check {dataset.where}"
        return Line(name, "failure", f"{shard.file}: {error}", remedy)
    spent = 1000 * (time.perf_counter() - begin) / max(1, count)
    found = (
        f"{info.samples} samples in {len(info.shards)} shards; {count} read, {spent:.1f} ms each"
    )
    return Line(name, "ok", found)


def _read(dataset: Dataset, shard: ShardInfo, stop: int) -> int:
    specs = {name: dataset.modality_in(shard, name) for name in dataset.manifest.modalities}
    count = 0
    for _, _, members in read_shard(dataset.shard(shard), stop=stop):
        for modality, spec in specs.items():
            data = None if spec is None else members.get(f"{modality}.{spec.ext}")
            if spec is not None and data is not None:
                decode(spec, data)
        count += 1
    return count
