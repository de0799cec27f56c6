"""Shards that are slow to start with, as no index file lies beside them."""

from __future__ import annotations

from outmodal.data.manifest import Dataset, ShardInfo

GIANT = 2_000_000_000
"""Bytes of a shard from which on its headers take a while to read, also from a local disk."""

LOOKED_AT = 4
"""Shards whose index files are looked for: the largest ones."""


def unindexed_notice(dataset: Dataset, split: str) -> str:
    """Return a sentence about shards far away, or giant ones, without index files; "" for none.

    Without one, every header of a shard is read before its first sample is.
    """
    shards = sorted(dataset.split(split).shards, key=lambda info: -info.bytes)[:LOOKED_AT]
    missing = [info for info in shards if _matters(dataset, info) and not _indexed(dataset, info)]
    if not missing:
        return ""
    held = sum(info.bytes for info in missing) / 1e9
    return (
        f"{missing[0].file} ({held:.1f} GB with the {len(missing) - 1} next largest without one) "
        "has no index file, so all its headers are read before its first sample: run `outmodal "
        "data index FOLDER` where the shards lie, and publish the *.tar.index files with them"
    )


def _matters(dataset: Dataset, info: ShardInfo) -> bool:
    return dataset.shard(info).far or info.bytes >= GIANT


def _indexed(dataset: Dataset, info: ShardInfo) -> bool:
    return dataset.shard(info).index_bytes() is not None
