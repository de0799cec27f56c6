"""A few samples from all over a split, without reading the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from outmodal.data.manifest import Dataset
from outmodal.data.shards import RawSample, ShardDamage, read_shard
from outmodal.errors import UserError


def even_positions(samples: int, count: int) -> NDArray[np.int64]:
    """Return up to `count` evenly spread positions of `samples`, the first and the last in them."""
    wanted: NDArray[np.int64] = np.linspace(0, samples - 1, max(min(count, samples), 0)).astype(
        np.int64
    )
    return wanted


def spread_samples(dataset: Dataset, split: str, count: int) -> Iterator[RawSample]:
    """Yield up to `count` evenly spread samples of `split`, in its order.

    Raises UserError that names the shard if one of them cannot be read.
    """
    samples = dataset.manifest.splits[split].samples
    return samples_at(dataset, split, even_positions(samples, count))


def samples_at(dataset: Dataset, split: str, wanted: NDArray[np.int64]) -> Iterator[RawSample]:
    """Yield the samples at the positions `wanted` of `split`, in its order; errors as above."""
    first = 0
    for shard in dataset.manifest.splits[split].shards:
        inside = wanted[(wanted >= first) & (wanted < first + shard.samples)] - first
        try:
            if len(inside):
                for position, key, members in read_shard(
                    dataset.shard(shard), select=inside.tolist()
                ):
                    yield RawSample(key, shard.file, first + position, members)
        except ShardDamage as damage:
            raise UserError(f"{dataset.where}: {damage}; {remedy(dataset)}") from None
        first += shard.samples


def remedy(dataset: Dataset) -> str:
    """Say what to do about a damaged shard."""
    return f"`outmodal data check {dataset.where}` lists what is wrong; then restore the shard"
