"""From picks to samples: read members from shards, decode, transform, replace what is corrupt."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outmodal.data.board import Board, Slot
from outmodal.data.buffers import Buffers
from outmodal.data.collate import TARGET, Sample
from outmodal.data.crew import Crew
from outmodal.data.decode import DecodeError, decode_numbers, find_member
from outmodal.data.draws import Draw, key_number
from outmodal.data.labels import ABSENT, LABEL, parse_label
from outmodal.data.manifest import Dataset, Modality, ShardInfo
from outmodal.data.plan import PADDING, Picks
from outmodal.data.sample_cache import Facts, Form, Input, Raw, SampleCache
from outmodal.data.shards import ShardDamage, read_shard
from outmodal.data.skips import SkipLedger, SkipRecord
from outmodal.data.store import ShardPlace
from outmodal.data.transform import Transform
from outmodal.errors import UserError

TARGET_SPEC = Modality(kind="vector", ext="npy")

FAR_SWEEP = 32
"""Samples of a stream that are read at once from a shard that is far away."""

OUT_OF_TURN = 8
"""Samples before and behind the last sweep that stay: threads come to them in any order."""

_FAR_GAP = 4096


@dataclass(frozen=True)
class Column:
    """One entry of a batch's `x`.

    Attributes:
        name: Its name there: a modality or a view of one.
        modality: What it is read from.
        draw: How it is augmented; None is not at all.
    """

    name: str
    modality: str
    draw: Draw | None = None


@dataclass(frozen=True)
class Members:
    """The encoded members of one sample that a block needs."""

    key: str
    data: Mapping[str, bytes]


class Reader:
    """All that one process needs to turn picks into samples: data set, inputs, cache, ledger,
    threads. Its methods may be called from several threads.

    Args:
        dataset: Where the shards are.
        inputs: modality -> transform.
        cache_bytes: Limit of the cache of read samples.
        ledger: Where corrupt samples are counted.
        threads: Threads that decode.
        board: Where to note what is being read.
        pin: Put batches into pinned memory, from which a GPU copies without waiting.
    """

    def __init__(
        self,
        dataset: Dataset,
        inputs: Mapping[str, Transform],
        cache_bytes: int,
        ledger: SkipLedger,
        *,
        threads: int = 1,
        board: Board | None = None,
        pin: bool = False,
    ) -> None:
        self.dataset = dataset
        self.ledger = ledger
        self.pin = pin
        self.buffers = Buffers()
        self.crew = Crew(threads, inline=threads == 1)
        self._inputs = inputs
        self._cache = SampleCache(cache_bytes)
        self._zeros = {name: transform.zeros() for name, transform in inputs.items()}
        self._bad: set[tuple[str, int, str | None]] = set()
        self._places: dict[tuple[str, int], ShardPlace] = {}
        self._board = board or Board(1, threads)
        self._slots: list[Slot] = []
        self.settle(0)

    def settle(self, worker: int) -> None:
        """Take the places of loader worker `worker` on the board, in this process."""
        count, pid = self.crew.count, os.getpid()
        self._slots = [self._board.slot(worker, thread, pid) for thread in range(count)]

    def open(self, split: str, columns: Sequence[Column], picks: Picks) -> Block:
        """Return the samples that `picks` name; they are read when they are asked for."""
        return Block(self, split, tuple(columns), picks)

    def blank(self, columns: Sequence[Column], index: int = PADDING) -> Sample:
        """Return a row without label and without modalities."""
        zeros = {column.name: self._zeros[column.modality] for column in columns}
        return Sample(index, ABSENT, zeros, dict.fromkeys(zeros, False))

    def is_bad(self, split: str, index: int, columns: Sequence[Column]) -> bool:
        """Tell whether a sample is known to be corrupt in what these columns need."""
        if not self._bad:
            return False
        parts = (None, *(column.modality for column in columns))
        return any((split, index, part) in self._bad for part in parts)

    def is_far(self, split: str, shard: int) -> bool:
        """Tell whether single reads of a shard are slow: it is remote, and nothing keeps it."""
        return self._place(split, shard).gap > _FAR_GAP

    def cached(self, split: str, index: int, columns: Sequence[Column]) -> Sample | None:
        """Return a sample from the cache, if all of it is there."""
        facts = self._cache.get((split, index, "", "facts"))
        if not isinstance(facts, Facts):
            return None
        held: dict[str, Input | Raw] = {}
        for column in columns:
            entry = self._cache.get((split, index, column.modality, self._form(column)))
            if not isinstance(entry, Input | Raw):
                return None
            held[column.name] = entry
        inputs = {c.name: self._made(c, held[c.name], facts.key) for c in columns}
        return self._sample(index, facts, columns, inputs)

    def read(
        self, split: str, columns: Sequence[Column], picks: Picks, thread: int = 0
    ) -> Iterator[tuple[int, Members]]:
        """Yield (index, members) of the picks that can be read, in the order of the shards."""
        wanted = {*(column.modality for column in columns), LABEL, TARGET}
        for shard in np.unique(picks.shard).tolist():
            part = picks.take(np.flatnonzero(picks.shard == shard))
            where = dict(zip(part.position.tolist(), part.index.tolist(), strict=True))
            self._slots[thread].reading(self._shard(split, shard))
            try:
                place = self._place(split, shard)
                for position, key, data in read_shard(place, select=sorted(where)):
                    kept = {k: v for k, v in data.items() if k.partition(".")[0] in wanted}
                    yield where.pop(position), Members(key, kept)
            except ShardDamage as damage:
                for lost in where.values():
                    self._mark(split, shard, lost, None, "", damage.detail)
            finally:
                self._slots[thread].idle()

    def decode(
        self,
        split: str,
        columns: Sequence[Column],
        shard: int,
        index: int,
        members: Members,
        thread: int = 0,
    ) -> Sample | None:
        """Decode and transform a sample; None, and counted, if a member of it is corrupt."""
        part: str | None = None
        self._slots[thread].reading(self._shard(split, shard), members.key)
        try:
            facts = self._facts(split, shard, index, members)
            inputs = {}
            for column in columns:
                part = column.modality
                inputs[column.name] = self._input(split, shard, column, index, members)
        except DecodeError as error:
            self._mark(split, shard, index, part, members.key, f"{part or TARGET}: {error}")
            return None
        except Exception as error:
            error.add_note(f"in sample '{members.key}' ({part}) of {self._shard(split, shard)}")
            raise
        finally:
            self._slots[thread].idle()
        return self._sample(index, facts, columns, inputs)

    def _facts(self, split: str, shard: int, index: int, members: Members) -> Facts:
        label = members.data.get(LABEL)
        target = find_member(TARGET_SPEC, TARGET, members.data)
        facts = Facts(
            label=ABSENT if label is None else self._label(split, shard, label, members.key),
            target=None if target is None else torch.from_numpy(decode_numbers(target)),
            key=members.key,
        )
        self._cache.put((split, index, "", "facts"), facts)
        return facts

    def _label(self, split: str, shard: int, text: bytes, key: str) -> int:
        info = self._info(split, shard)
        where = f"{self._place(split, shard).where}: sample '{key}'"
        return self.dataset.label(info, parse_label(text, self.dataset.classes_in(info), where))

    def _input(
        self, split: str, shard: int, column: Column, index: int, members: Members
    ) -> Tensor | None:
        """One column of a sample; None where the sample lacks it."""
        place = (split, index, column.modality, self._form(column))
        entry = self._cache.get(place)
        if not isinstance(entry, Input | Raw):
            spec = self.dataset.modality_in(self._info(split, shard), column.modality)
            data = None if spec is None else find_member(spec, column.modality, members.data)
            if spec is None or data is None:
                entry = Input(None, False)
            else:
                entry = self._entry(column, spec, data, members.key)
            self._cache.put(place, entry)
        return self._made(column, entry, members.key)

    def _form(self, column: Column) -> Form:
        """What is cached of a column: what is drawn anew in every epoch is not."""
        drawn = column.draw is not None and self._inputs[column.modality].random
        return "raw" if drawn else "input"

    def _entry(self, column: Column, spec: Modality, data: bytes, key: str) -> Input | Raw:
        """What is to be cached of a member. A transform that decodes in its own way may do so
        differently for each draw, so its members are kept as they are."""
        transform = self._inputs[column.modality]
        if self._form(column) == "input":
            return Input(transform.from_bytes(spec, data, key), True)
        if type(transform).from_bytes is Transform.from_bytes:
            return Raw(transform.decode(spec, data))
        return Raw(data, spec)

    def _made(self, column: Column, entry: Input | Raw, key: str) -> Tensor | None:
        """A column's tensor from what is cached of it."""
        if isinstance(entry, Input):
            return entry.value
        transform = self._inputs[column.modality]
        if isinstance(entry.value, bytes):
            assert entry.spec is not None
            return transform.from_bytes(entry.spec, entry.value, key, column.draw)
        return transform.compact(entry.value, key, column.draw)

    def _sample(
        self,
        index: int,
        facts: Facts,
        columns: Sequence[Column],
        inputs: Mapping[str, Tensor | None],
    ) -> Sample:
        x, present = {}, {}
        for column in columns:
            value = inputs[column.name]
            x[column.name] = self._zeros[column.modality] if value is None else value
            present[column.name] = value is not None
        return Sample(index, facts.label, x, present, facts.target, key_number(facts.key))

    def _mark(
        self, split: str, shard: int, index: int, part: str | None, key: str, reason: str
    ) -> None:
        """Remember that a sample is corrupt in one modality, or (None) as a whole."""
        self._bad.add((split, index, part))
        source = self.dataset.source_of(split, shard)
        self.ledger.add(SkipRecord(split, self._shard(split, shard), index, key, reason, source))

    def _shard(self, split: str, shard: int) -> str:
        return self._info(split, shard).file

    def _info(self, split: str, shard: int) -> ShardInfo:
        return self.dataset.split(split).shards[shard]

    def _place(self, split: str, shard: int) -> ShardPlace:
        place = self._places.get((split, shard))
        if place is None:
            place = self._places[split, shard] = self.dataset.shard(self._info(split, shard))
        return place


class Block:
    """Samples in the order of their picks, read and decoded on demand: a block of W picks holds
    no more than the rows that are being read."""

    def __init__(
        self, reader: Reader, split: str, columns: tuple[Column, ...], picks: Picks
    ) -> None:
        self._reader, self._split, self._columns, self._picks = reader, split, columns, picks
        self._held: dict[int, Members] = {}  # read ahead from far away
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._picks)

    def sample(self, j: int, thread: int = 0) -> Sample:
        """Return pick `j`, see `rows`."""
        return self.rows([j], thread)[0]

    def rows(self, chosen: Sequence[int], thread: int = 0) -> list[Sample]:
        """Return the picks `chosen`, read in one sweep.

        In place of a corrupt one comes the next good sample of the block, or the nearest one
        before it if there is none; UserError if the block has no good sample.
        """
        found = self.try_rows(chosen, thread)
        return [
            self._instead(j, thread) if sample is None else sample
            for j, sample in zip(chosen, found, strict=True)
        ]

    def try_rows(self, chosen: Sequence[int], thread: int = 0) -> list[Sample | None]:
        """Return the picks `chosen`, None for those that are corrupt."""
        reader, absent = self._reader, []
        ready: dict[int, Sample | None] = {}
        for j in chosen:
            index = int(self._picks.index[j])
            ready[index] = reader.cached(self._split, index, self._columns)
            if ready[index] is None and not reader.is_bad(self._split, index, self._columns):
                absent.append(j)
        held = self._members(absent, thread) if absent else {}
        for j in absent:
            index, shard = int(self._picks.index[j]), int(self._picks.shard[j])
            if index in held:
                ready[index] = reader.decode(
                    self._split, self._columns, shard, index, held.pop(index), thread
                )
        return [ready[int(self._picks.index[j])] for j in chosen]

    def blank(self, j: int) -> Sample:
        """Return the row of pick `j` without label and without modalities."""
        return self._reader.blank(self._columns, int(self._picks.index[j]))

    def _instead(self, j: int, thread: int) -> Sample:
        for k in (*range(j + 1, len(self)), *reversed(range(j))):
            (sample,) = self.try_rows([k], thread)
            if sample is not None:
                return sample
        raise UserError(
            f"none of {len(self)} neighbouring samples of split '{self._split}' can be read: "
            + self._reader.ledger.summary(
                self._reader.dataset.source_of(self._split, int(self._picks.shard[j]))
            )
        )

    def _members(self, absent: Sequence[int], thread: int) -> dict[int, Members]:
        """The members of picks, by index; of those far away also what comes next."""
        far = self._reader.is_far(self._split, int(self._picks.shard[absent[0]]))
        if not far:
            return dict(self._read(absent, thread))
        with self._lock:
            if any(int(self._picks.index[j]) not in self._held for j in absent):
                self._sweep(absent, thread)
            return {
                i: self._held[i] for j in absent if (i := int(self._picks.index[j])) in self._held
            }

    def _sweep(self, absent: Sequence[int], thread: int) -> None:
        """Read picks and what comes behind them, but for what is held. What lies shortly before
        and behind stays, too: threads that ask out of turn still want it."""
        begin, end = absent[0], min(len(self), absent[0] + FAR_SWEEP)
        near = self._picks.index[max(0, begin - OUT_OF_TURN) : end + OUT_OF_TURN].tolist()
        self._held = {i: self._held[i] for i in near if i in self._held}
        chosen = sorted({*absent, *range(begin, end)})
        wanted = [j for j in chosen if int(self._picks.index[j]) not in self._held]
        self._held.update(self._read(wanted, thread))

    def _read(self, wanted: Sequence[int], thread: int) -> Iterator[tuple[int, Members]]:
        picks = self._picks.take(np.asarray(wanted, dtype=np.int64))
        return self._reader.read(self._split, self._columns, picks, thread)
