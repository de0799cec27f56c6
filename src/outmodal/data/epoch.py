"""An epoch of a stream over a data set: its order, and how many samples it has, uses and drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outmodal.data.batch import StreamSpec
from outmodal.data.manifest import Dataset
from outmodal.data.mixture import Mixture
from outmodal.data.mixture_plan import MixPlan, Part, whole_shares
from outmodal.data.plan import Plan


def epoch_plan(
    dataset: Dataset, spec: StreamSpec, seed: int, epoch: int, streams: int, window: int
) -> Plan | MixPlan:
    """Return the order of a stream in an epoch.

    Training splits of mixtures are woven from a plan for each source that has samples (or
    selected ones), and shares are taken by the samples to draw from; all else is one `Plan`.
    """
    split = dataset.split(spec.split)
    if not isinstance(dataset, Mixture) or spec.split != dataset.train_split:
        sizes = tuple(info.samples for info in split.shards)
        return Plan(seed, epoch, spec.name, streams, window, sizes, spec.select)
    pools = [_Pool.of(dataset, spec.split, k, spec.select) for k in range(len(dataset.sources))]
    weights = dataset.weights([pool.samples for pool in pools])
    filled = [(pool, weight) for pool, weight in zip(pools, weights, strict=True) if weight]
    words = (seed, epoch, spec.name)
    shares = whole_shares([weight for _, weight in filled])
    parts = tuple(
        Part(pool.plan(words, streams, window), share, pool.number, pool.shard, pool.index)
        for (pool, _), share in zip(filled, shares, strict=True)
    )
    return MixPlan(seed, epoch, spec.name, streams, window, parts)


@dataclass(frozen=True, eq=False)
class _Pool:
    """What a stream draws from one source.

    Attributes:
        number: Of the source.
        sizes: Samples in each of its shards.
        shard, index: Its first shard and sample in the mixture's split.
        select: Indices in the source, None for all.
    """

    number: int
    sizes: tuple[int, ...]
    shard: int
    index: int
    select: NDArray[np.int64] | None

    @staticmethod
    def of(mixture: Mixture, split: str, number: int, select: NDArray[np.int64] | None) -> _Pool:
        """Cut a source's part out of a selection."""
        sizes = [[info.samples for info in s.shards(split)] for s in mixture.sources]
        index = sum(sum(counts) for counts in sizes[:number])
        own = tuple(sizes[number])
        if select is not None:
            low, high = np.searchsorted(select, [index, index + sum(own)])
            select = select[low:high] - index
        return _Pool(number, own, sum(map(len, sizes[:number])), index, select)

    @property
    def samples(self) -> int:
        """Samples to draw from."""
        return sum(self.sizes) if self.select is None else len(self.select)

    def plan(self, words: tuple[int, int, str], streams: int, window: int) -> Plan:
        """The order of the source's samples; fewer than the streams are repeated."""
        select = self.select
        if select is None and self.samples < streams:
            select = np.arange(self.samples)
        seed, epoch, name = words
        return Plan(
            seed, epoch, f"{name}\0source {self.number}", streams, window, self.sizes, select
        )


@dataclass(frozen=True)
class SourceUse:
    """What an epoch takes of one data set.

    Attributes:
        name: Of the data set.
        samples: That it has.
        drawn: That an epoch draws, on average; more than there are where they come up again.
    """

    name: str
    samples: int
    drawn: float

    def sentence(self, epoch: float) -> str:
        """Say so; `epoch` is what the whole epoch draws."""
        share = 100 * self.drawn / max(epoch, 1)
        return f"{self.name}: {self.samples} samples, {share:.1f} %, {self.passes:.2f} passes"

    @property
    def passes(self) -> float:
        """How often an epoch goes through it."""
        return self.drawn / max(1, self.samples)


@dataclass(frozen=True)
class EpochUse:
    """How many samples an epoch has, uses and drops.

    Attributes:
        samples: Of the split.
        drawn: Steps x batch.
        batch: The global batch.
        sources: Of a mixture; else empty.
    """

    samples: int
    drawn: int
    batch: int
    sources: tuple[SourceUse, ...] = ()

    @property
    def used(self) -> int:
        """Samples that an epoch uses at least once (of a mixture: draws), of one pass."""
        return min(self.samples, self.drawn)

    @property
    def dropped(self) -> int:
        """Samples of a pass that an epoch leaves out: others in every epoch."""
        return self.samples - self.used

    def sentence(self) -> str:
        """Say so in one line."""
        text = f"an epoch has {self.samples} samples, uses {self.used}, drops {self.dropped}"
        if self.dropped:
            text += f" (no full batch of {self.batch}; others in every epoch)"
        if self.drawn > self.samples:
            text += f", and goes through them {self.drawn / self.samples:.2f} times"
        if self.sources:
            text += "; " + "; ".join(s.sentence(self.drawn) for s in self.sources)
        return text


def epoch_use(dataset: Dataset, split: str, batch: int, steps: int | None = None) -> EpochUse:
    """Return what an epoch over a split takes.

    Args:
        dataset: The data set.
        split: Its training split.
        batch: Global batch.
        steps: Steps of an epoch; None is one pass.
    """
    samples = dataset.split(split).samples
    drawn = batch * (samples // batch if steps is None else steps)
    if not isinstance(dataset, Mixture) or split != dataset.train_split:
        return EpochUse(samples, drawn, batch)
    counts = [sum(info.samples for info in s.shards(split)) for s in dataset.sources]
    weights = dataset.weights(counts)
    sources = tuple(
        SourceUse(source.name, count, drawn * weight / sum(weights))
        for source, count, weight in zip(dataset.sources, counts, weights, strict=True)
    )
    return EpochUse(samples, drawn, batch, sources)


def drawn_counts(
    dataset: Dataset,
    specs: Sequence[StreamSpec],
    steps: int,
    *,
    seed: int,
    epoch: int,
    streams: int,
    window: int,
) -> Mapping[str, int]:
    """Return how many samples of each source of a mixture `steps` steps of an epoch draw.

    Computed from the plans of `specs`, so that it is the same for any number of ranks, and for
    a run that was resumed. Empty for anything but a mixture.
    """
    if not isinstance(dataset, Mixture):
        return {}
    counts = {source.name: 0 for source in dataset.sources}
    for spec in specs:
        if spec.select is not None and not len(spec.select):
            continue
        plan = epoch_plan(dataset, spec, seed, epoch, streams, window)
        if isinstance(plan, MixPlan):
            drawn = plan.drawn(steps * (spec.batch // streams))
            for part, count in zip(plan.parts, drawn, strict=True):
                counts[dataset.sources[part.source].name] += count
    return counts
