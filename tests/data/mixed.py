"""Small mixtures of tiny data sets, and data sets cut in odd ways."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outmodal.data.manifest import (
    Dataset,
    Manifest,
    ShardInfo,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.mixture import Mixture
from outmodal.data.opening import open_data
from outmodal.data.shards import ShardWriter, read_shard
from outmodal.data.stream import StreamConfig


def open_mix(*sources: Mapping[str, Any], **keys: Any) -> Mixture:
    """Open a mixture by the keys of its configuration."""
    dataset = open_data(StreamConfig(mix=sources, **keys))
    assert isinstance(dataset, Mixture)
    return dataset


def recut(source: Dataset, root: Path, sizes: Sequence[int], split: str = "train") -> Dataset:
    """Write a split again in shards of these sizes, empty ones included; the rest is dropped."""
    root.mkdir(parents=True)
    samples = [
        (key, dict(members))
        for info in source.split(split).shards
        for _, key, members in read_shard(source.shard(info))
    ]
    assert sum(sizes) <= len(samples)
    infos, first = [], 0
    for number, size in enumerate(sizes):
        path = root / f"{split}-{number:06d}.tar"
        infos.append(_shard(path, samples[first : first + size]) if size else _empty(path))
        first += size
    manifest: Manifest = source.manifest.model_copy(
        update={"splits": {split: SplitInfo(samples=first, shards=tuple(infos))}}
    )
    write_manifest(root, manifest)
    return open_dataset(root)


def _shard(path: Path, samples: Sequence[tuple[str, dict[str, bytes]]]) -> ShardInfo:
    with ShardWriter(path) as shard:
        for key, members in samples:
            shard.add(key, members)
    return shard.info


def _empty(path: Path) -> ShardInfo:
    """A tar without members, as writers leave it that had nothing to write."""
    tarfile.open(path, "w").close()
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return ShardInfo(file=path.name, samples=0, bytes=len(data), sha256=digest)
