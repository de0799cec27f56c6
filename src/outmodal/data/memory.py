"""How much memory a loader may take: a bound that follows from its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from outmodal.data.batch import StreamSpec
from outmodal.data.feed import UNDER_WAY
from outmodal.data.manifest import Dataset
from outmodal.data.sample_cache import OVERHEAD
from outmodal.data.samples import FAR_SWEEP, OUT_OF_TURN
from outmodal.data.stream import StreamConfig
from outmodal.data.transform import Transform
from outmodal.data.workers import AHEAD

INDEXED_SHARDS = 256
"""Shards whose index stays in memory."""

_INDEX_ROW = 400  # bytes of a sample in the index of its shard, with two members


def memory_bound(
    dataset: Dataset,
    inputs: Mapping[str, Transform],
    cfg: StreamConfig,
    specs: Sequence[StreamSpec],
    world: int = 1,
) -> int:
    """Return an estimate of the most bytes that one rank's loader holds at a time.

    Per reading process: the cache of `data.cache_mb`; of every step that is ready, being put
    together or being read (AHEAD + UNDER_WAY + 1) the rows of this process, each as compact
    tensors twice (its own, and its place in the batch) and as encoded members; read-ahead where
    shards are far away; and the indices of INDEXED_SHARDS shards. It does not depend on how long
    the loader runs. What single decoders need while they work, and the tables of the inputs
    (vocabularies, noise), are not in it. Samples count as large as they are on average.

    Args:
        dataset: The data set.
        inputs: modality -> transform.
        cfg: The `data:` section.
        specs: Streams of a step.
        world: Ranks.
    """
    readers = max(1, cfg.workers)
    total = readers * (cfg.cache_mb << 20)
    for spec in specs:
        shards = dataset.split(spec.split).shards
        samples = max(1, sum(shard.samples for shard in shards))
        encoded = sum(shard.bytes for shard in shards) // samples + OVERHEAD
        columns = [*spec.modalities, *(view.modality for view in spec.views)]
        compact = sum(_compact(inputs[modality]) for modality in columns) + OVERHEAD
        rows = -(-spec.batch // world)
        total += rows * (AHEAD + UNDER_WAY + 1) * (2 * compact + encoded)
        if shards and dataset.shard(shards[0]).gap > 0:
            total += (FAR_SWEEP + 2 * OUT_OF_TURN) * max(cfg.streams, rows) * encoded
        indexed = min(len(shards), INDEXED_SHARDS) * (samples // max(1, len(shards)))
        total += readers * indexed * _INDEX_ROW
    return total


def memory_sentence(bound: int) -> str:
    """Say so, and what it hangs on."""
    return (
        f"reading takes at most about {bound / 1e6:,.0f} MB in each rank (data.cache_mb for each "
        "reading process, the rows of a few batches, indices of shards)"
    )


def _compact(transform: Transform) -> int:
    shape, dtype = transform.stored
    return prod(shape) * dtype.itemsize
