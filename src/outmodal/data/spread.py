"""A few samples from all over a split, without reading the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from outmodal.data.manifest import Dataset
from outmodal.data.shards import RawSample, ShardDamage, read_shard
from outmodal.errors import UserError


def spread_samples(dataset: Dataset, split: str, count: int) -> Iterator[RawSample]:
    """Yield up to `count` evenly spread samples of `split`, in its order.

    Raises UserError that names the shard if one of them cannot be read.
    """
    info = dataset.manifest.splits[split]
    wanted = np.linspace(0, info.samples - 1, min(count, info.samples)).astype(np.int64)
    first = 0
    for shard in info.shards:
        inside = wanted[(wanted >= first) & (wanted < first + shard.samples)] - first
        path = dataset.shard_path(shard)
        try:
            for position, key, members in read_shard(path, select=inside.tolist()):
                yield RawSample(key, shard.file, first + position, members)
        except ShardDamage as damage:
            raise UserError(f"{dataset.root}: {damage}; {remedy(dataset)}") from None
        first += shard.samples


def remedy(dataset: Dataset) -> str:
    """Say what to do about a damaged shard."""
    return f"`outmodal data check {dataset.root}` lists what is wrong; then restore the shard"
