"""What one reading process does for an epoch or for a pass: a plan in, batches out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from outmodal.data.batch import Batch
from outmodal.data.plan import PADDING, Indices, Layout, Plan
from outmodal.data.samples import Reader, Sample, collate


class Feed(Protocol):
    """Work for one process. Picklable, so that it can be sent to a loader worker."""

    def run(self, reader: Reader) -> Iterator[dict[str, Batch]]:
        """Yield stream name -> batch, once for each step."""
        ...


@dataclass(frozen=True)
class Strand:
    """This process's part of one stream spec.

    Attributes:
        split: Split of the data set.
        modalities: Modalities to decode.
        plan: Order of the samples.
        rows: Samples per step from each stream.
    """

    split: str
    modalities: tuple[str, ...]
    plan: Plan
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

    def run(self, reader: Reader) -> Iterator[dict[str, Batch]]:
        batches = {name: self._batches(reader, strand) for name, strand in self.strands.items()}
        for _ in range(self.start, self.stop):
            yield {name: next(source) for name, source in batches.items()}

    def _batches(self, reader: Reader, strand: Strand) -> Iterator[Batch]:
        """Yield the batches of one stream spec from step `start` on, without end."""
        first = self.start * strand.rows
        streams = [_samples(reader, strand, stream, first) for stream in self.streams]
        while True:
            yield collate([s for stream in streams for s in islice(stream, strand.rows)])


def _samples(reader: Reader, strand: Strand, stream: int, position: int) -> Iterator[Sample]:
    """Yield one stream's samples from `position` on, without end."""
    while True:
        picks, offset = strand.plan.block(stream, position)
        block = reader.open(strand.split, strand.modalities, picks, offset)
        for j in range(offset, len(block)):
            yield block.sample(j)
        position += len(block) - offset


@dataclass(frozen=True)
class PassFeed:
    """Batches of an evaluation pass.

    A corrupt sample keeps its row, so that each sample has exactly one: without label, with
    zeros, every modality absent.

    Attributes:
        name: Name of the stream spec.
        split: Split of the data set.
        modalities: Modalities to decode.
        sizes: Samples in each shard of the split.
        batches: [steps, rows] indices in the split, PADDING where there is no sample.
    """

    name: str
    split: str
    modalities: tuple[str, ...]
    sizes: tuple[int, ...]
    batches: Indices

    def run(self, reader: Reader) -> Iterator[dict[str, Batch]]:
        layout = Layout(self.sizes)
        for index in self.batches:
            picks = layout.picks(index[index != PADDING])
            block = reader.open(self.split, self.modalities, picks)
            rows = [
                block.try_sample(j) or reader.blank(self.modalities, int(picks.index[j]))
                for j in range(len(picks))
            ]
            rows += [reader.blank(self.modalities)] * (len(index) - len(rows))
            yield {self.name: collate(rows)}
