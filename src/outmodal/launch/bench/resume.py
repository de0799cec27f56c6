"""How long an epoch takes to begin: at its start, and in its middle after a restart."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from outmodal.data.arrays import VectorInput
from outmodal.data.batch import StreamSpec
from outmodal.data.encode import encode_npy
from outmodal.data.manifest import (
    Dataset,
    Manifest,
    Modality,
    ShardInfo,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.shards import ShardWriter, read_shard
from outmodal.data.stream import Loader, StreamConfig, steps_per_epoch
from outmodal.errors import UserError

SPLIT, NAME, DIM = "train", "vector", 64
LATE = 0.9
"""Part of the epoch that a late start leaves out."""
LIMIT = 2.0
"""Seconds that a late start may take, beside the read of one shard."""


def measure_resume(
    folder: Path,
    shards: int = 1000,
    samples: int = 64,
    batch: int = 256,
    repeats: int = 3,
) -> dict[str, Any]:
    """Time the first batch of an epoch of many shards, from step 0 and from 90 % of the epoch.

    Each measurement has a process of its own, so that none finds what another has opened.

    Args:
        folder: Where the data set is, or is made: `shards` tars of `samples` small vectors.
        shards, samples: Of the data set; ignored where the folder holds one.
        batch: Samples of a step.
        repeats: Measurements; their median counts.

    Returns:
        "early_s", "late_s": seconds from opening the loader to the first batch; "shard_s": to
        open, scan and read one shard; "limit_s": LIMIT + shard_s; "within": late_s <= limit_s;
        "shards", "samples", "streams", "steps", "late_step".

    Raises:
        UserError: The folder holds something else.
    """
    dataset = _opened(folder, shards, samples)
    with _loader(dataset, batch) as loader:
        streams = loader.streams
    steps = steps_per_epoch(dataset, SPLIT, batch, streams)
    late = int(LATE * steps)
    early_s, late_s, shard_s = [], [], []
    for _ in range(repeats):
        shard_s.append(_apart(lambda: _read_shard(dataset)))
        early_s.append(_apart(lambda: _first_batch(dataset, batch, 0, steps)))
        late_s.append(_apart(lambda: _first_batch(dataset, batch, late, steps)))
    found = {
        "early_s": statistics.median(early_s),
        "late_s": statistics.median(late_s),
        "shard_s": statistics.median(shard_s),
    }
    limit = LIMIT + found["shard_s"]
    counts = {
        "shards": len(dataset.split(SPLIT).shards),
        "samples": dataset.split(SPLIT).samples,
        "streams": streams,
        "steps": steps,
        "late_step": late,
    }
    return {**found, "limit_s": limit, "within": found["late_s"] <= limit, **counts}


def _opened(folder: Path, shards: int, samples: int) -> Dataset:
    if not (folder / "dataset.json").exists() and not any(folder.glob("*")):
        _make(folder, shards, samples)
    dataset = open_dataset(folder)
    if NAME not in dataset.manifest.modalities or SPLIT not in dataset.manifest.splits:
        raise UserError(f"{folder} holds another data set: give an empty folder")
    return dataset


def _make(folder: Path, shards: int, samples: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    member = encode_npy(np.zeros(DIM, np.float32))
    infos: list[ShardInfo] = []
    for number in range(shards):
        with ShardWriter(folder / f"{SPLIT}-{number:06d}.tar") as shard:
            for i in range(samples):
                shard.add(f"{number:06d}-{i:05d}", {f"{NAME}.npy": member, "cls": b"0"})
        infos.append(shard.info)
    split = SplitInfo(samples=shards * samples, shards=tuple(infos))
    manifest = Manifest(
        name="resume",
        classes=("one",),
        modalities={NAME: Modality(kind="vector", ext="npy", shape=(DIM,))},
        splits={SPLIT: split},
    )
    write_manifest(folder, manifest)


def _loader(dataset: Dataset, batch: int) -> Loader:
    made = VectorInput(dim=DIM).build(dataset, NAME, None)
    return Loader(dataset, {NAME: made}, StreamConfig(path=str(dataset.root), batch=batch))


def _first_batch(dataset: Dataset, batch: int, start: int, steps: int) -> float:
    begin = time.perf_counter()
    spec = StreamSpec("all", SPLIT, (NAME,), batch)
    with _loader(dataset, batch) as loader:
        next(loader.open_epoch([spec], seed=0, epoch=0, start_step=start, steps=steps))
        return time.perf_counter() - begin


def _read_shard(dataset: Dataset) -> float:
    begin = time.perf_counter()
    for _ in read_shard(dataset.shard(dataset.split(SPLIT).shards[0])):
        pass
    return time.perf_counter() - begin


def _apart(measure: Callable[[], float]) -> float:
    """Run a measurement in a forked process."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_tell, args=(measure, theirs))
    process.start()
    theirs.close()
    try:
        found: float = ours.recv()
    except EOFError:
        raise UserError("a measurement ended early: see the messages above") from None
    finally:
        process.join()
    return found


def _tell(measure: Callable[[], float], link: Connection) -> None:
    link.send(measure())
