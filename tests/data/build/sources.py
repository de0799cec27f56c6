"""Small sources of files for tests of the folder builder."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from outmodal.data.encode import encode_npy, encode_png, encode_wav
from outmodal.data.manifest import Dataset
from outmodal.data.shards import read_shard


def png(seed: int, size: tuple[int, ...] = (6, 5)) -> bytes:
    """A picture of noise."""
    return encode_png(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


def wav(seed: int, rate: int = 8000) -> bytes:
    """A twentieth of a second of noise."""
    return encode_wav(np.random.default_rng(seed).uniform(-0.5, 0.5, rate // 20), rate)


def npy(seed: int, *shape: int) -> bytes:
    """An array of noise."""
    return encode_npy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write the files, and return `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """Write a table, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read_all(dataset: Dataset, split: str) -> dict[str, dict[str, bytes]]:
    """Key -> members of every sample of a split."""
    return {
        key: members
        for info in dataset.split(split).shards
        for _, key, members in read_shard(dataset.shard_path(info))
    }
