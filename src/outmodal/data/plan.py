"""The order of samples: a pure function of (seed, epoch, stream name, position), without I/O.

One pass over a split of S shards, cut into V virtual streams, window W (here 5, 2 and 4):

    shards in a seeded order    |  3  |    0    |   4   |  1  |        2       |
    their samples, as a ring    a b c d e f g h i j k l m n o p q r s t u v w x y
    V ranges from a seeded cut  >--| |------- stream 0 ------|---- stream 1 ---->
                                    c is left over
    blocks of W                       d e f g|h i j k|l m n o|p q r s|t u v w|x y a b
    each in a seeded order            f d g e|h k j i|n l o m|s q p r| ...

The order of the shards and the cut are drawn from (seed, epoch, name, pass), the order in a block
from the same words and (stream, block). The up to V - 1 samples left over are dropped in this
pass only. A stream goes on with pass 1, 2, ... for ever, so an epoch may be longer than a pass;
every epoch starts at pass 0 of its own order.

Step t of a global batch B takes the positions t*b .. (t+1)*b - 1, b = B / V, of each stream:

    global batch t = [ stream 0 | stream 1 | ... | stream V-1 ]
    two ranks        [ rank 0            ][ rank 1            ]
    x two workers    [ worker 0][worker 1][ worker 0][worker 1]

Ranks and their loader workers own whole, contiguous streams, so the global batches are the same
for every number of ranks and workers that divides V. A position is found without walking: a
binary search over the shards and the permutation of one block. So a resume at step t reads
nothing that came before, and the number of steps follows from sizes alone, never from a rank.

Streams are cut from a ring of samples, not of shards: one giant shard, tiny, uneven and empty ones
give every reader the same number of steps. A block's samples lie in a few stretches of W in all,
so readers fetch neighbours together. The idea of a fixed number of canonical streams is MosaicML
Streaming's elastic determinism.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from outmodal.errors import UserError

MOST_STREAMS = 64
"""Streams that are chosen automatically, unless there are more readers than this."""

FEWEST_STREAMS = 16
"""Streams that are chosen for data sets of fewer shards, so that a run can go on with more readers
than it began with. Streams are cut from a ring of samples, so they need no shard each."""

PADDING = -1
"""Index of rows that only fill up the last batches of an evaluation pass."""

Indices = NDArray[np.int64]


def permutation(n: int, *words: int | str) -> Indices:
    """Return a seeded order of range(n), equal on every machine and for every numpy release.

    Sorts the raw output of the Philox counter generator (Salmon et al., 2011), whose bits numpy
    guarantees, keyed by a hash of `words`.
    """
    return np.argsort(_philox(*words).random_raw(n), kind="stable")


def _philox(*words: int | str) -> np.random.Philox:
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def uniform(n: int, *words: int | str) -> int:
    """Return a seeded number in range(n), as stable as `permutation`."""
    return _philox(*words).random_raw() % n


@lru_cache(maxsize=64)
def _ring(shards: int, samples: int, *words: int | str) -> tuple[Indices, int]:
    """Return the order of the shards in a pass, and the place where their ring is cut."""
    order = permutation(shards, "shards", *words)
    order.flags.writeable = False
    return order, uniform(samples, "cut", *words)


@dataclass(frozen=True)
class Picks:
    """Samples in the order in which they are used.

    Attributes:
        index: [n] position in the split.
        shard: [n] number of the shard in the split.
        position: [n] position in the shard.
    """

    index: Indices
    shard: Indices
    position: Indices

    def __len__(self) -> int:
        return len(self.index)

    def take(self, chosen: Indices) -> Picks:
        """Return the picks at the places `chosen`."""
        return Picks(self.index[chosen], self.shard[chosen], self.position[chosen])


@dataclass(frozen=True)
class Layout:
    """Where the samples of a split lie: the number of samples in each of its shards."""

    sizes: tuple[int, ...]

    @cached_property
    def starts(self) -> Indices:
        """[S + 1] index of each shard's first sample, and the number of samples at the end."""
        return np.concatenate([[0], np.cumsum(np.asarray(self.sizes, dtype=np.int64))])

    @property
    def samples(self) -> int:
        """Samples of the split."""
        return int(self.starts[-1])

    def picks(self, index: Indices) -> Picks:
        """Locate samples by their index in the split; ValueError where there is no such sample."""
        if len(index) and (index.min() < 0 or index.max() >= self.samples):
            raise ValueError(f"index outside 0..{self.samples - 1}")
        shard = np.searchsorted(self.starts, index, side="right") - 1
        return Picks(index, shard, index - self.starts[shard])


class EpochPlan(Protocol):
    """The endless order of each stream in one epoch: `Plan`, or `mixture_plan.MixPlan`."""

    @property
    def streams(self) -> int:
        """V, which readers share out among them."""
        ...

    def block(self, stream: int, position: int) -> tuple[Picks, int]:
        """Return the block that holds a stream's `position`, in order, and the offset in it."""
        ...


def picks_between(plan: EpochPlan, stream: int, start: int, stop: int) -> Picks:
    """Return a stream's samples at the positions start .. stop - 1."""
    none = np.empty(0, np.int64)
    parts = [Picks(none, none, none)]
    while start < stop:
        picks, offset = plan.block(stream, start)
        parts.append(picks.take(np.arange(offset, min(len(picks), offset + stop - start))))
        start += len(parts[-1])
    return Picks(
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.shard for part in parts]),
        np.concatenate([part.position for part in parts]),
    )


def global_batch(plan: EpochPlan, step: int, batch: int) -> Indices:
    """Return the indices of global batch `step`, the same for every number of ranks."""
    rows = batch // plan.streams
    span = (step * rows, (step + 1) * rows)
    parts = [picks_between(plan, stream, *span).index for stream in range(plan.streams)]
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Plan:
    """The endless order of each of `streams` streams in one epoch (see the module's picture).

    Attributes:
        seed: Run seed.
        epoch: Epoch; each has an order of its own.
        name: Name of the stream spec; specs over one split are ordered independently.
        streams: V, which readers share out among them.
        window: W, samples that are shuffled together.
        sizes: Samples in each shard of the split.
        select: Sorted indices to draw from, None for the whole split. Fewer than V are repeated
            until every stream has one, so only then may a pass hold a sample more than once.
    """

    seed: int
    epoch: int
    name: str
    streams: int
    window: int
    sizes: tuple[int, ...]
    select: Indices | None = None

    def __post_init__(self) -> None:
        if self.select is not None and np.any(np.diff(self.select) <= 0):
            raise ValueError(f"stream '{self.name}': the selected indices must be sorted, unique")
        if self.select is not None and len(self.select):
            self._layout.picks(self.select)
        if self.length < 1:
            raise ValueError(f"stream '{self.name}': fewer samples than {self.streams} streams")

    @cached_property
    def _layout(self) -> Layout:
        return Layout(self.sizes)

    @cached_property
    def _chosen(self) -> Indices | None:
        """The selection, repeated where it is smaller than the number of streams."""
        if self.select is None or not 0 < len(self.select) < self.streams:
            return self.select
        return np.repeat(self.select, -(-self.streams // len(self.select)))

    @cached_property
    def _bounds(self) -> Indices:
        """[S + 1] number of chosen samples before each shard."""
        starts = self._layout.starts
        return starts if self._chosen is None else np.searchsorted(self._chosen, starts)

    @property
    def samples(self) -> int:
        """Samples to draw from in a pass, counting repetitions."""
        return int(self._bounds[-1])

    @property
    def length(self) -> int:
        """Positions of one stream in one pass."""
        return self.samples // self.streams

    def block(self, stream: int, position: int) -> tuple[Picks, int]:
        """Return the block that holds a stream's `position`, in order, and the offset in it."""
        turn, place = divmod(position, self.length)
        number, offset = divmod(place, self.window)
        first = number * self.window
        size = min(self.window, self.length - first)
        words = ("block", self.seed, self.epoch, self.name, turn, stream, number)
        places = stream * self.length + first + permutation(size, *words)
        return self._locate(turn, places), offset

    def _locate(self, turn: int, places: Indices) -> Picks:
        """Find the samples at `places` behind the cut of the pass's ring of samples."""
        words = (self.seed, self.epoch, self.name, turn)
        order, cut = _ring(len(self.sizes), self.samples, *words)
        places = (cut + places) % self.samples
        counts = np.diff(self._bounds)[order]
        ends = np.cumsum(counts)
        k = np.searchsorted(ends, places, side="right")
        rank = self._bounds[order[k]] + places - (ends[k] - counts[k])
        return self._layout.picks(rank if self._chosen is None else self._chosen[rank])

    def at(self, stream: int, position: int) -> tuple[int, int]:
        """Return (shard, position in the shard) of a stream's `position`."""
        picks, offset = self.block(stream, position)
        return int(picks.shard[offset]), int(picks.position[offset])

    def indices(self, stream: int, start: int, stop: int) -> Indices:
        """Return the indices in the split of a stream's positions start .. stop - 1."""
        return picks_between(self, stream, start, stop).index

    def batch(self, step: int, batch: int) -> Indices:
        """Return the indices of global batch `step`."""
        return global_batch(self, step, batch)


def share(streams: int, part: int, parts: int) -> range:
    """Return the contiguous streams that reader `part` of `parts` owns."""
    each = streams // parts
    return range(part * each, (part + 1) * each)


@dataclass(frozen=True)
class PassPlan:
    """An evaluation pass: every sample exactly once, in index order, padded at the end.

    Rank r holds the contiguous samples r*k .. (r+1)*k - 1, k = ceil(samples / world), as far as
    they exist, in `steps` batches of `rows` rows each on every rank; what is missing is PADDING.

    Attributes:
        samples: Samples of the pass.
        batch: Global batch.
        world: Number of ranks.
    """

    samples: int
    batch: int
    world: int

    @property
    def rows(self) -> int:
        """Rows of a batch on each rank."""
        return -(-self.batch // self.world)

    @property
    def steps(self) -> int:
        """Batches, the same number on each rank."""
        return -(-self._share // self.rows)

    @property
    def _share(self) -> int:
        return -(-self.samples // self.world)

    def places(self, rank: int, step: int) -> Indices:
        """Return [rows] places 0..samples-1 of one rank's batch, PADDING where there is none."""
        within = np.arange(step * self.rows, (step + 1) * self.rows, dtype=np.int64)
        places = rank * self._share + within
        return np.where((within < self._share) & (places < self.samples), places, PADDING)


def valid_streams(limit: int, batch: int, readers: int) -> list[int]:
    """Return the numbers of streams up to `limit` that divide the batch and that readers
    (ranks x workers) share equally, in ascending order."""
    return [streams for streams in range(readers, limit + 1, readers) if batch % streams == 0]


def choose_streams(shards: int, samples: int, batch: int, ranks: int, workers: int) -> int:
    """Return the largest power of two that fits, or the largest number where none does.

    At most one stream for each shard, but 16 are allowed in any case and 64 at most (or one for
    each reader, where there are more), and never more than samples; they divide the batch, and
    ranks x workers divides them. UserError if nothing fits.
    """
    readers = ranks * workers
    if readers > samples:
        raise UserError(
            f"{_readers(ranks, workers)} need a sample each, but the split has {samples}: "
            + _fewer_readers(ranks, samples)
        )
    if batch % readers:
        raise UserError(
            f"data.batch={batch} cannot be shared by {_readers(ranks, workers)}: "
            f"use data.batch={_nearest_multiple(batch, readers)}"
        )
    limit = max(readers, min(MOST_STREAMS, max(FEWEST_STREAMS, shards)))
    valid = valid_streams(min(samples, limit), batch, readers)
    return max([v for v in valid if v & (v - 1) == 0] or valid)


def check_readers(streams: int, ranks: int, workers: int) -> None:
    """UserError unless ranks x workers divides the streams."""
    if streams % ranks:
        raise UserError(
            f"data.streams={streams} cannot be shared by {ranks} ranks: use "
            f"{_nearest(ranks, _divisors(streams))} ranks, or begin a new run with "
            f"data.streams={_nearest_multiple(streams, ranks)}"
        )
    if streams % (ranks * workers):
        fit = _nearest(workers, _divisors(streams // ranks))
        raise UserError(
            f"data.streams={streams} cannot be shared by {_readers(ranks, workers)}: "
            f"use data.workers={fit}"
        )


def check_batch(batch: int, streams: int, name: str = "") -> None:
    """UserError unless the streams divide a batch; `name` is the stream spec that wants it."""
    if batch % streams:
        owner = f" of stream '{name}'" if name else ""
        raise UserError(
            f"data.streams={streams} does not divide the batch of {batch}{owner}: use a batch of "
            f"{_nearest_multiple(batch, streams)} (data.batch), or "
            f"data.streams={_nearest(streams, _divisors(batch))}"
        )


def check_split(split: str, sizes: Sequence[int], streams: int, batch: int, readers: int) -> None:
    """UserError if a whole split has fewer samples than there are streams."""
    samples = sum(sizes)
    if samples < streams:
        fit = valid_streams(samples, batch, readers)
        raise UserError(
            f"split '{split}' has {samples} samples, fewer than data.streams={streams}: "
            + (f"use data.streams={fit[-1]}, or " if fit else "")
            + "build the data set with more samples"
        )


def _readers(ranks: int, workers: int) -> str:
    return f"{ranks} ranks x {workers} workers = {ranks * workers} readers"


def _fewer_readers(ranks: int, samples: int) -> str:
    if ranks > samples:
        return f"use at most {samples} ranks, or build the data set with more samples"
    return f"use data.workers={samples // ranks}, or build the data set with more samples"


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest(value: int, valid: Sequence[int]) -> int:
    return min(valid, key=lambda v: (abs(v - value), v))


def _nearest_multiple(value: int, of: int) -> int:
    return max(of, (value + of // 2) // of * of)
