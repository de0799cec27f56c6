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

import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from outmodal.closing import Closing
from outmodal.data.batch import Batch, Finish, StreamSpec, View
from outmodal.data.board import Board
from outmodal.data.collate import join
from outmodal.data.crew import ahead
from outmodal.data.draws import Draw
from outmodal.data.epoch import epoch_plan
from outmodal.data.feed import EpochFeed, Feed, PassFeed, Strand
from outmodal.data.manifest import Dataset
from outmodal.data.mixing import Mixer
from outmodal.data.plan import (
    PADDING,
    PassPlan,
    check_batch,
    check_split,
    share,
)
from outmodal.data.samples import Column, Reader
from outmodal.data.skips import SkipLedger
from outmodal.data.stream_config import StreamConfig, resolve_streams, steps_per_epoch
from outmodal.data.transform import Transform
from outmodal.data.workers import AHEAD, Item, WorkerPool
from outmodal.errors import UserError, nearest

__all__ = ["Loader", "StreamConfig", "choose_threads", "resolve_streams", "steps_per_epoch"]

MOST_THREADS = 8

CHEAP = 0.0003
"""Seconds of reading a row below which threads do not pay off in the training process."""


class Loader(Closing):
    """Reads one data set for one rank.

    Args:
        dataset: The data set.
        inputs: modality -> transform, for every modality that a stream may ask for.
        cfg: The `data:` section.
        rank, world: Which rank of how many this is.
        pin: Give batches in pinned memory, from which a GPU copies without waiting.

    Attributes:
        ledger: Corrupt samples that this rank met.
        board: What is being read right now.
    """

    def __init__(
        self,
        dataset: Dataset,
        inputs: Mapping[str, Transform],
        cfg: StreamConfig,
        *,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
    ) -> None:
        self.ledger = SkipLedger(cfg.max_skips, dataset.where)
        self._dataset, self._inputs, self._cfg = dataset, inputs, cfg
        self._rank, self._world = rank, world
        self._workers = max(1, cfg.workers)
        self._threads = choose_threads(cfg.threads, cfg.workers)
        self._pin = pin
        self.board = Board(self._workers, self._threads)
        self._pool: WorkerPool | None = None
        self._local: Reader | None = None
        self._passing: weakref.WeakSet[Iterator[dict[str, Batch]]] = weakref.WeakSet()

    @cached_property
    def streams(self) -> int:
        """Number of virtual streams of an epoch, see `resolve_streams`."""
        sizes = self._sizes(self._cfg.train_split)
        return resolve_streams(self._cfg, sizes, self._cfg.batch, self._world)

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
        later = {name: self._later(strand.columns) for name, strand in strands.items()}
        mixers = {
            spec.name: Mixer(spec.mixing, Draw(seed, epoch, spec.name))
            for spec in specs
            if spec.mixing is not None
        }
        return self._finishing(self._joined(feeds), later, mixers)

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
        columns = _columns(spec, None)
        feeds = [
            PassFeed(spec.name, spec.split, columns, sizes, places[w :: self._workers])
            for w in range(self._workers)
        ]
        later = {spec.name: self._later(columns)}
        return (batches[spec.name] for batches in self._finishing(self._batches(feeds), later))

    def close(self) -> None:
        """End workers and threads. Epochs and passes that are open cannot go on."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        for passing in list(self._passing):
            passing.close()  # type: ignore[attr-defined]
        if self._local is not None:
            self._local.crew.close()
            self._local = None

    def _joined(self, feeds: Sequence[Feed]) -> Iterator[dict[str, Batch]]:
        """Yield one dictionary for each round of the workers, their rows in order."""
        parts: list[dict[str, Batch]] = []
        for batches in self._batches(feeds):
            parts.append(batches)
            if len(parts) == len(feeds):
                yield {name: join([part[name] for part in parts]) for name in parts[0]}
                parts = []

    def _finishing(
        self,
        steps: Iterator[dict[str, Batch]],
        later: Mapping[str, Mapping[str, Finish]],
        mixers: Mapping[str, Mixer] | None = None,
    ) -> Iterator[dict[str, Batch]]:
        """Add what is left to do on the device. What workers sent is not in pinned memory yet."""
        pin = self._pin and self._cfg.workers > 0
        for batches in steps:
            if pin:
                batches = {name: batch.pinned() for name, batch in batches.items()}
            yield {
                name: replace(batch, later=later[name], mixer=(mixers or {}).get(name))
                for name, batch in batches.items()
            }

    def _later(self, columns: Sequence[Column]) -> dict[str, Finish]:
        """What is left to do to each column, if anything is."""
        return {
            column.name: Later(self._inputs[column.modality], column.draw)
            for column in columns
            if type(self._inputs[column.modality]).finish is not Transform.finish
        }

    def _batches(self, feeds: Sequence[Feed]) -> Iterator[dict[str, Batch]]:
        """Yield what the feeds give in turn, from workers or from this process."""
        if self._cfg.workers == 0:
            yield from self._here(feeds[0])
            return
        if self._pool is None:
            reader = self._reader(SkipLedger(self._cfg.max_skips, enforce=False), pin=False)
            self._pool = WorkerPool(reader, self._workers, self.board)
        for item in self._pool.run(feeds):
            yield self._accept(item)

    def _accept(self, item: Item) -> dict[str, Batch]:
        self.ledger.extend(item.skips)
        if item.failure is not None:
            raise UserError(item.failure)
        if item.crash is not None:
            raise RuntimeError(f"a loader worker failed:\n{item.crash}")
        return item.batches

    def _here(self, feed: Feed) -> Iterator[dict[str, Batch]]:
        """Run a feed in this process.

        Threads pay off where decoders are busy in libraries, which let other threads run; where
        a sample costs less than Python itself, threads only get in the training's way. So unless
        their number was given, they start when samples turn out to be expensive.
        """
        if self._local is None:
            self._local = self._reader(self.ledger, pin=self._pin)
            self._local.crew.inline = True
        crew, source = self._local.crew, feed.run(self._local)
        if crew.inline and not self._cfg.threads:
            for batches, cost in _timed(source):
                yield batches
                if cost > CHEAP:
                    break
            else:
                return
        crew.inline = False
        running = ahead(source, AHEAD)
        self._passing.add(running)
        yield from running

    def _reader(self, ledger: SkipLedger, *, pin: bool) -> Reader:
        return Reader(
            self._dataset,
            self._inputs,
            self._cfg.cache_mb << 20,
            ledger,
            threads=self._threads,
            board=self.board,
            pin=pin,
        )

    def _strand(self, spec: StreamSpec, seed: int, epoch: int) -> Strand:
        self._check_modalities(spec)
        check_batch(spec.batch, self.streams, spec.name)
        sizes = self._sizes(spec.split)
        if spec.select is None:
            readers = self._world * self._workers
            check_split(spec.split, sizes, self.streams, spec.batch, readers)
        plan = epoch_plan(self._dataset, spec, seed, epoch, self.streams, self._cfg.window)
        columns = _columns(spec, Draw(seed, epoch))
        return Strand(spec.split, columns, plan, spec.batch // self.streams)

    def _check_modalities(self, spec: StreamSpec) -> None:
        for modality in (*spec.modalities, *(view.modality for view in spec.views)):
            if modality not in self._inputs:
                raise UserError(
                    f"stream '{spec.name}' asks for modality '{modality}', which has no input"
                    + nearest(modality, self._inputs)
                )
            self._dataset.modality(modality)

    def _sizes(self, split: str) -> tuple[int, ...]:
        return tuple(shard.samples for shard in self._dataset.split(split).shards)


def choose_threads(asked: int, workers: int) -> int:
    """Return the decode threads of each reading process: `asked`, or a share of the cores.

    Ranks of one machine, and their workers, share its cores. More than MOST_THREADS in one process
    wait for each other, as what is left to Python runs in one at a time.
    """
    if asked:
        return asked
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) // max(1, ranks * max(1, workers))
    return min(MOST_THREADS, max(1, cores))


@dataclass(frozen=True)
class Later:
    """What is left to do to an input on the device."""

    transform: Transform
    draw: Draw | None

    def __call__(self, x: Tensor, keys: Tensor) -> Tensor:
        return self.transform.finish(x, keys, self.draw)


def _columns(spec: StreamSpec, draw: Draw | None) -> tuple[Column, ...]:
    """What a stream's batches hold; in a pass (without a draw) nothing is augmented."""
    looks = [View(modality, modality) for modality in spec.modalities] + list(spec.views)
    if len({look.name for look in looks}) < len(looks):
        raise ValueError(f"two modalities or views of stream '{spec.name}' have the same name")
    return tuple(
        Column(
            look.name,
            look.modality,
            None
            if draw is None or look.policy == "none"
            else replace(draw, view=look.name, policy=look.policy),
        )
        for look in looks
    )


def _timed(
    source: Iterator[dict[str, Batch]],
) -> Iterator[tuple[dict[str, Batch], float]]:
    """Yield steps with the seconds that a row cost, averaged; the first step opens the shards."""
    cost, begin = 0.0, time.perf_counter()
    for number, batches in enumerate(source):
        rows = sum(len(batch) for batch in batches.values())
        spent = (time.perf_counter() - begin) / max(1, rows)
        if number:
            cost = spent if number == 1 else (cost + spent) / 2
        yield batches, cost
        begin = time.perf_counter()


def _filled(specs: Sequence[StreamSpec]) -> list[StreamSpec]:
    """Return the specs that have samples; their names must differ."""
    if len({spec.name for spec in specs}) < len(specs):
        raise ValueError("two streams of a step have the same name")
    return [spec for spec in specs if spec.select is None or len(spec.select)]
