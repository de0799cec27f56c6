"""What one reading process does for an epoch or for a pass: a plan in, batches out.

A step's rows are cut into jobs for the reader's threads. The jobs of the next step are begun
before a step's batch is put together, so that threads have work also at the end of a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Protocol, TypeVar

from outmodal.data.batch import Batch
from outmodal.data.collate import Sample, collate
from outmodal.data.crew import Job, Pending
from outmodal.data.plan import PADDING, EpochPlan, Indices, Layout
from outmodal.data.samples import Block, Column, Reader

UNDER_WAY = 2
"""Steps whose rows are being read at once where threads read them."""

JOBS_PER_THREAD = 4
"""Jobs of a step for each thread: more even out what they cost, fewer cost less themselves."""

T = TypeVar("T")
Batches = Generator[dict[str, Batch], None, None]
Place = tuple[Block, int]
"""A block, and the number of a pick in it."""


class Feed(Protocol):
    """Work for one process. Picklable, so that it can be sent to a loader worker."""

    def run(self, reader: Reader) -> Batches:
        """Yield stream name -> batch, once for each step."""
        ...


@dataclass(frozen=True)
class Strand:
    """This process's part of one stream spec.

    Attributes:
        split: Split of the data set.
        columns: What to decode.
        plan: Order of the samples.
        rows: Samples per step from each stream.
    """

    split: str
    columns: tuple[Column, ...]
    plan: EpochPlan
    rows: int


@dataclass(frozen=True)
class EpochFeed:
    """Steps `start` .. `stop` - 1 of an epoch.

    Attributes:
        strands: stream spec's name -> what to draw for it.
        streams: The streams that this process owns.
        start: First step.
        stop: Behind the last step.
    """

    strands: dict[str, Strand]
    streams: range
    start: int
    stop: int

    def run(self, reader: Reader) -> Batches:
        sources = {name: self._places(reader, strand) for name, strand in self.strands.items()}
        waiting: deque[dict[str, Pending[list[Sample]]]] = deque()
        for _ in range(self.start, self.stop):
            steps = {name: next(source) for name, source in sources.items()}
            waiting.append({name: _begin(reader, places) for name, places in steps.items()})
            while len(waiting) >= _under_way(reader):
                yield _batches(reader, waiting.popleft())
        while waiting:
            yield _batches(reader, waiting.popleft())

    def _places(self, reader: Reader, strand: Strand) -> Iterator[list[Place]]:
        """Yield the rows of one stream spec's steps from `start` on, without end."""
        first = self.start * strand.rows
        streams = [_walk(reader, strand, stream, first) for stream in self.streams]
        while True:
            yield [place for stream in streams for place in islice(stream, strand.rows)]


def _walk(reader: Reader, strand: Strand, stream: int, position: int) -> Iterator[Place]:
    """Yield one stream's rows from `position` on, without end."""
    while True:
        picks, offset = strand.plan.block(stream, position)
        block = reader.open(strand.split, strand.columns, picks)
        for j in range(offset, len(block)):
            yield block, j
        position += len(block) - offset


@dataclass(frozen=True)
class PassFeed:
    """Batches of an evaluation pass.

    A corrupt sample keeps its row, so that each sample has exactly one: without label, with
    zeros, every modality absent.

    Attributes:
        name: Name of the stream spec.
        split: Split of the data set.
        columns: What to decode.
        sizes: Samples in each shard of the split.
        batches: [steps, rows] indices in the split, PADDING where there is no sample.
    """

    name: str
    split: str
    columns: tuple[Column, ...]
    sizes: tuple[int, ...]
    batches: Indices

    def run(self, reader: Reader) -> Batches:
        waiting: deque[dict[str, Pending[list[Sample]]]] = deque()
        for step in range(len(self.batches)):
            waiting.append({self.name: self._begin(reader, step)})
            while len(waiting) >= _under_way(reader):
                yield self._batches(reader, step + 1 - len(waiting), waiting.popleft())
        while waiting:
            yield self._batches(reader, len(self.batches) - len(waiting), waiting.popleft())

    def _begin(self, reader: Reader, step: int) -> Pending[list[Sample]]:
        index = self.batches[step]
        picks = Layout(self.sizes).picks(index[index != PADDING])
        block = reader.open(self.split, self.columns, picks)
        parts = _parts(range(len(picks)), reader)
        return reader.crew.start([partial(_pass_rows, block, part) for part in parts])

    def _batches(
        self, reader: Reader, step: int, waiting: dict[str, Pending[list[Sample]]]
    ) -> dict[str, Batch]:
        rows = [row for part in waiting[self.name].results() for row in part]
        padding = len(self.batches[step]) - len(rows)
        rows += [reader.blank(self.columns)] * padding
        return {self.name: collate(rows, reader.pin, reader.buffers)}


def _pass_rows(block: Block, chosen: Sequence[int], thread: int) -> list[Sample]:
    found = block.try_rows(chosen, thread)
    return [
        block.blank(j) if sample is None else sample
        for j, sample in zip(chosen, found, strict=True)
    ]


def _under_way(reader: Reader) -> int:
    return 1 if reader.crew.inline else UNDER_WAY


def _begin(reader: Reader, places: Sequence[Place]) -> Pending[list[Sample]]:
    """Begin to read the rows of a step."""
    jobs: list[Job[list[Sample]]] = [partial(_epoch_rows, p) for p in _parts(places, reader)]
    return reader.crew.start(jobs)


def _epoch_rows(places: Sequence[Place], thread: int) -> list[Sample]:
    rows: list[Sample] = []
    for block, group in groupby(places, key=itemgetter(0)):
        rows += block.rows([j for _, j in group], thread)
    return rows


def _batches(reader: Reader, waiting: dict[str, Pending[list[Sample]]]) -> dict[str, Batch]:
    """Put the batches of one step together when their rows are there."""
    return {
        name: collate(
            [row for part in pending.results() for row in part], reader.pin, reader.buffers
        )
        for name, pending in waiting.items()
    }


def _parts(rows: Sequence[T], reader: Reader) -> list[Sequence[T]]:
    """Cut rows into jobs."""
    count = 1 if reader.crew.inline else JOBS_PER_THREAD * reader.crew.count
    each = max(1, -(-len(rows) // count))
    return [rows[at : at + each] for at in range(0, len(rows), each)]
