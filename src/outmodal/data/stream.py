"""The loader: batches of an epoch, resumable at every step, and evaluation passes.

    with Loader(dataset, inputs, cfg, rank=rank, world=world) as loader:
        for batches in loader.open_epoch(specs, seed=0, epoch=3, start_step=17, steps=400):
            ...                             # steps 17 .. 399: stream name -> this rank's rows
        for batch in loader.open_pass(spec):
            ...                             # every sample once over all ranks

The order comes from `plan`; a loader lives as long as its run, so that its workers and their
caches of transformed samples serve all epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import TracebackType

import numpy as np
from pydantic import Field

from outmodal.base import Config
from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.feed import EpochFeed, Feed, PassFeed, Strand
from outmodal.data.manifest import EMBEDDED, Dataset
from outmodal.data.plan import (
    PADDING,
    PassPlan,
    Plan,
    check_batch,
    check_readers,
    check_split,
    choose_streams,
    share,
)
from outmodal.data.samples import Reader, join
from outmodal.data.skips import SkipLedger
from outmodal.data.transform import Transform
from outmodal.data.workers import Item, WorkerPool
from outmodal.errors import UserError, nearest


class StreamConfig(Config):
    """The `data:` section of a run's configuration.

    Attributes:
        path: Data set: a folder, or the name of the embedded one.
        train_split, eval_split: Names of the splits.
        batch: Global batch: samples per step of each stream over all ranks.
        streams: Virtual streams that the data are cut into; 0 chooses. Batches depend on it, so a
            run records the number.
        window: Samples of one stream that are shuffled together.
        workers: Reading processes per rank; 0 reads in the training process.
        cache_mb: Memory for transformed samples, in each reading process.
        max_skips: Corrupt samples that a run tolerates, in each rank; one more stops it.
    """

    path: str = EMBEDDED
    train_split: str = "train"
    eval_split: str = "test"
    batch: int = Field(default=128, ge=1)
    streams: int = Field(default=0, ge=0)
    window: int = Field(default=1024, ge=1)
    workers: int = Field(default=0, ge=0)
    cache_mb: int = Field(default=512, ge=0)
    max_skips: int = Field(default=100, ge=0)


def resolve_streams(cfg: StreamConfig, n_shards: int, batch: int, world: int) -> int:
    """Return the number of virtual streams: `cfg.streams`, or a choice where that is 0.

    The choice is the largest power of two that is at most 64 and the number of shards, divides
    the batch and is shared equally by ranks and workers. A run records it as its
    `data.streams`, so that it goes on with the same batches on another number of ranks.
    UserError, with the nearest value that works, if nothing fits.
    """
    workers = max(1, cfg.workers)
    if cfg.streams == 0:
        return choose_streams(n_shards, batch, world, workers)
    check_readers(cfg.streams, world, workers)
    check_batch(batch, cfg.streams)
    return cfg.streams


def steps_per_epoch(dataset: Dataset, split: str, batch: int, streams: int) -> int:
    """Return the whole global batches in one pass over a split; UserError if there is none."""
    samples = dataset.split(split).samples
    steps = (samples // streams) // (batch // streams)
    if steps < 1:
        raise UserError(
            f"split '{split}' has {samples} samples, fewer than data.batch={batch}: "
            f"use data.batch={samples // streams * streams or samples} or less"
        )
    return steps


class Loader:
    """Reads one data set for one rank.

    Args:
        dataset: The data set.
        inputs: modality -> transform, for every modality that a stream may ask for.
        cfg: The `data:` section.
        rank, world: Which rank of how many this is.

    Attributes:
        ledger: Corrupt samples that this rank met.
    """

    def __init__(
        self,
        dataset: Dataset,
        inputs: Mapping[str, Transform],
        cfg: StreamConfig,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.ledger = SkipLedger(cfg.max_skips, str(dataset.root))
        self._dataset, self._inputs, self._cfg = dataset, inputs, cfg
        self._rank, self._world = rank, world
        self._workers = max(1, cfg.workers)
        self._pool: WorkerPool | None = None

    @cached_property
    def streams(self) -> int:
        """Number of virtual streams of an epoch, see `resolve_streams`."""
        shards = len(self._dataset.split(self._cfg.train_split).shards)
        return resolve_streams(self._cfg, shards, self._cfg.batch, self._world)

    def open_epoch(
        self,
        specs: Sequence[StreamSpec],
        *,
        seed: int,
        epoch: int,
        start_step: int = 0,
        steps: int,
    ) -> Iterator[dict[str, Batch]]:
        """Check the specs, and return an iterator over steps `start_step` .. `steps` - 1.

        Each step is a dictionary from a spec's name to this rank's rows of its global batch, in
        the order of the streams. A spec with an empty selection is absent. Nothing that belongs
        to steps before `start_step` is read.

        Raises UserError for specs that do not fit the data set or the number of streams; the
        iterator raises it for bad labels and for too many corrupt samples.
        """
        strands = {spec.name: self._strand(spec, seed, epoch) for spec in _filled(specs)}
        readers = self._world * self._workers
        feeds = [
            EpochFeed(
                strands,
                share(self.streams, self._rank * self._workers + worker, readers),
                start_step,
                steps,
            )
            for worker in range(self._workers)
        ]
        return self._joined(feeds)

    def open_pass(self, spec: StreamSpec) -> Iterator[Batch]:
        """Return an iterator over this rank's batches of an evaluation pass.

        Every selected sample comes exactly once over all ranks, in index order; each rank gets
        a contiguous range and the same number of batches of the same size, ceil(spec.batch /
        ranks). Rows that only fill up have index -1 and valid False. The row of a corrupt
        sample has its index, valid True, no label and every modality absent.
        """
        self._check_modalities(spec)
        sizes = self._sizes(spec.split)
        samples = sum(sizes) if spec.select is None else len(spec.select)
        plan = PassPlan(samples, spec.batch, self._world)
        places = np.empty((plan.steps, plan.rows), np.int64)
        for step in range(plan.steps):
            places[step] = plan.places(self._rank, step)
        if spec.select is not None and samples:
            places = np.where(places == PADDING, PADDING, spec.select[places])
        feeds = [
            PassFeed(spec.name, spec.split, spec.modalities, sizes, places[w :: self._workers])
            for w in range(self._workers)
        ]
        return (batches[spec.name] for batches in self._batches(feeds))

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _joined(self, feeds: Sequence[Feed]) -> Iterator[dict[str, Batch]]:
        """Yield one dictionary for each round of the workers, their rows in order."""
        parts: list[dict[str, Batch]] = []
        for batches in self._batches(feeds):
            parts.append(batches)
            if len(parts) == len(feeds):
                yield {name: join([part[name] for part in parts]) for name in parts[0]}
                parts = []

    def _batches(self, feeds: Sequence[Feed]) -> Iterator[dict[str, Batch]]:
        """Yield what the feeds give in turn, from workers or from this process."""
        if self._cfg.workers == 0:
            yield from feeds[0].run(self._local_reader)
            return
        if self._pool is None:
            self._pool = WorkerPool(self._reader(enforce=False), self._workers)
        for item in self._pool.run(feeds):
            yield self._accept(item)

    def _accept(self, item: Item) -> dict[str, Batch]:
        self.ledger.extend(item.skips)
        if item.failure is not None:
            raise UserError(item.failure)
        return item.batches

    @cached_property
    def _local_reader(self) -> Reader:
        return self._reader(enforce=True)

    def _reader(self, *, enforce: bool) -> Reader:
        ledger = self.ledger
        if not enforce:
            ledger = SkipLedger(ledger.budget, ledger.source, enforce=False)
        return Reader(self._dataset, self._inputs, self._cfg.cache_mb << 20, ledger)

    def _strand(self, spec: StreamSpec, seed: int, epoch: int) -> Strand:
        self._check_modalities(spec)
        check_batch(spec.batch, self.streams, spec.name)
        sizes = self._sizes(spec.split)
        if spec.select is None:
            readers = self._world * self._workers
            check_split(spec.split, sizes, self.streams, spec.batch, readers)
        plan = Plan(seed, epoch, spec.name, self.streams, self._cfg.window, sizes, spec.select)
        return Strand(spec.split, spec.modalities, plan, spec.batch // self.streams)

    def _check_modalities(self, spec: StreamSpec) -> None:
        for modality in spec.modalities:
            if modality not in self._inputs:
                raise UserError(
                    f"stream '{spec.name}' asks for modality '{modality}', which has no input"
                    + nearest(modality, self._inputs)
                )
            self._dataset.modality(modality)

    def _sizes(self, split: str) -> tuple[int, ...]:
        return tuple(shard.samples for shard in self._dataset.split(split).shards)


def _filled(specs: Sequence[StreamSpec]) -> list[StreamSpec]:
    """Return the specs that have samples; their names must differ."""
    if len({spec.name for spec in specs}) < len(specs):
        raise ValueError("two streams of a step have the same name")
    return [spec for spec in specs if spec.select is None or len(spec.select)]
