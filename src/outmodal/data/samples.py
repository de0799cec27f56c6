"""From picks to samples: read members from shards, decode, transform, replace what is corrupt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.data.decode import DecodeError, decode_numbers, find_member
from outmodal.data.labels import ABSENT, LABEL, parse_label
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.plan import PADDING, Indices, Picks
from outmodal.data.sample_cache import Facts, Input, SampleCache
from outmodal.data.shards import ShardDamage, read_shard
from outmodal.data.skips import SkipLedger, SkipRecord
from outmodal.data.transform import Transform
from outmodal.errors import UserError

TARGET = "target"
TARGET_SPEC = Modality(kind="vector", ext="npy")


@dataclass(frozen=True)
class Sample:
    """One row of a batch.

    Attributes:
        index: Position in the split, PADDING on padding rows.
        label: Class, -1 where the sample has none.
        x: modality -> transformed input, zeros where it is absent.
        present: modality -> whether the sample has it.
        target: Regression target, or None.
    """

    index: int
    label: int
    x: Mapping[str, Tensor]
    present: Mapping[str, bool]
    target: Tensor | None = None


@dataclass(frozen=True)
class _Members:
    """The encoded members of one sample that a block needs."""

    key: str
    data: Mapping[str, bytes]


class Reader:
    """All that one process needs to turn picks into samples: data set, inputs, cache, ledger.

    Args:
        dataset: Where the shards are.
        inputs: modality -> transform.
        cache_bytes: Limit of the cache of transformed samples.
        ledger: Where corrupt samples are counted.
    """

    def __init__(
        self,
        dataset: Dataset,
        inputs: Mapping[str, Transform],
        cache_bytes: int,
        ledger: SkipLedger,
    ) -> None:
        self.dataset = dataset
        self.ledger = ledger
        self._inputs = inputs
        self._cache = SampleCache(cache_bytes)
        self._zeros = {name: transform.zeros() for name, transform in inputs.items()}
        self._bad: set[tuple[str, int, str | None]] = set()

    def open(self, split: str, modalities: Sequence[str], picks: Picks, first: int = 0) -> Block:
        """Read what `picks[first:]` need into memory, and return them as a block."""
        return Block(self, split, tuple(modalities), picks, first)

    def blank(self, modalities: Sequence[str], index: int = PADDING) -> Sample:
        """Return a row without label and without modalities."""
        zeros = {name: self._zeros[name] for name in modalities}
        return Sample(index, ABSENT, zeros, dict.fromkeys(modalities, False))

    def is_bad(self, split: str, index: int, modalities: Sequence[str]) -> bool:
        """Tell whether a sample is known to be corrupt in what these modalities need."""
        return any((split, index, part) in self._bad for part in (None, *modalities))

    def cached(self, split: str, index: int, modalities: Sequence[str]) -> Sample | None:
        """Return a sample from the cache, if all of it is there."""
        facts = self._cache.get((split, index, None))
        found = {name: self._cache.get((split, index, name)) for name in modalities}
        inputs = {name: entry for name, entry in found.items() if isinstance(entry, Input)}
        if not isinstance(facts, Facts) or len(inputs) < len(found):
            return None
        return self._sample(index, facts, inputs)

    def read(
        self, split: str, modalities: Sequence[str], picks: Picks
    ) -> Iterator[tuple[int, _Members]]:
        """Yield (index, members) of the picks that can be read, in the order of the shards."""
        wanted = {*modalities, LABEL, TARGET}
        for shard in np.unique(picks.shard):
            part = picks.take(np.flatnonzero(picks.shard == shard))
            where = dict(zip(part.position.tolist(), part.index.tolist(), strict=True))
            path = self.dataset.shard_path(self.dataset.split(split).shards[shard])
            try:
                for position, key, data in read_shard(path, select=sorted(where)):
                    kept = {k: v for k, v in data.items() if k.partition(".")[0] in wanted}
                    yield where.pop(position), _Members(key, kept)
            except ShardDamage as damage:
                for lost in where.values():
                    self._mark(split, int(shard), lost, None, "", damage.detail)

    def decode(
        self, split: str, modalities: Sequence[str], shard: int, index: int, members: _Members
    ) -> Sample | None:
        """Decode and transform a sample; None, and counted, if a member of it is corrupt."""
        part: str | None = None
        try:
            facts = self._facts(split, shard, index, members)
            inputs = {}
            for part in modalities:
                inputs[part] = self._input(split, part, index, members)
        except DecodeError as error:
            self._mark(split, shard, index, part, members.key, f"{part or TARGET}: {error}")
            return None
        except Exception as error:
            error.add_note(f"in sample '{members.key}' ({part}) of {self._shard(split, shard)}")
            raise
        return self._sample(index, facts, inputs)

    def _facts(self, split: str, shard: int, index: int, members: _Members) -> Facts:
        label = members.data.get(LABEL)
        target = find_member(TARGET_SPEC, TARGET, members.data)
        where = f"{self.dataset.root / self._shard(split, shard)}: sample '{members.key}'"
        classes = len(self.dataset.manifest.classes)
        facts = Facts(
            label=ABSENT if label is None else parse_label(label, classes, where),
            target=None if target is None else torch.from_numpy(decode_numbers(target)),
        )
        self._cache.put((split, index, None), facts)
        return facts

    def _input(self, split: str, modality: str, index: int, members: _Members) -> Input:
        cached = self._cache.get((split, index, modality))
        if isinstance(cached, Input):
            return cached
        spec = self.dataset.modality(modality)
        data = find_member(spec, modality, members.data)
        value = None
        if data is not None:
            value = self._inputs[modality].from_bytes(spec, data, members.key)
        made = Input(value, data is not None)
        self._cache.put((split, index, modality), made)
        return made

    def _sample(self, index: int, facts: Facts, inputs: Mapping[str, Input]) -> Sample:
        x = {m: self._zeros[m] if i.value is None else i.value for m, i in inputs.items()}
        present = {m: i.present for m, i in inputs.items()}
        return Sample(index, facts.label, x, present, facts.target)

    def _mark(
        self, split: str, shard: int, index: int, part: str | None, key: str, reason: str
    ) -> None:
        """Remember that a sample is corrupt in one modality, or (None) as a whole."""
        self._bad.add((split, index, part))
        self.ledger.add(SkipRecord(split, self._shard(split, shard), index, key, reason))

    def _shard(self, split: str, shard: int) -> str:
        return self.dataset.split(split).shards[shard].file


class Block:
    """Samples in the order of their picks. Members are read at once and decoded on demand."""

    def __init__(
        self, reader: Reader, split: str, modalities: tuple[str, ...], picks: Picks, first: int
    ) -> None:
        self._reader, self._split, self._modalities, self._picks = reader, split, modalities, picks
        self._ready: dict[int, Sample] = {}
        self._members: dict[int, _Members] = {}
        self._load(np.arange(first, len(picks)))

    def __len__(self) -> int:
        return len(self._picks)

    def sample(self, j: int) -> Sample:
        """Return pick `j`, or in place of a corrupt one the next good sample of the block, or
        the nearest one before it if there is none; UserError if the block has no good sample."""
        for k in (*range(j, len(self)), *reversed(range(j))):
            sample = self.try_sample(k)
            if sample is not None:
                return sample
        raise UserError(
            f"none of {len(self)} neighbouring samples of split '{self._split}' can be read: "
            + self._reader.ledger.summary()
        )

    def try_sample(self, j: int) -> Sample | None:
        """Return pick `j`, None if it is corrupt."""
        index = int(self._picks.index[j])
        if index not in self._ready and index not in self._members:
            self._load(np.array([j]))
        if index in self._ready:
            return self._ready[index]
        if self._reader.is_bad(self._split, index, self._modalities):
            return None
        shard, members = int(self._picks.shard[j]), self._members[index]
        return self._reader.decode(self._split, self._modalities, shard, index, members)

    def _load(self, wanted: Indices) -> None:
        """Get picks from the cache, or their members from the shards."""
        absent = []
        for j in wanted:
            index = int(self._picks.index[j])
            cached = self._reader.cached(self._split, index, self._modalities)
            if cached is not None:
                self._ready[index] = cached
            elif not self._reader.is_bad(self._split, index, self._modalities):
                absent.append(j)
        picks = self._picks.take(np.array(absent, dtype=np.int64))
        self._members.update(self._reader.read(self._split, self._modalities, picks))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch. Where only some have a target, the others' are NaN."""
    first = samples[0]
    index = torch.tensor([s.index for s in samples])
    targets = [None if s.target is None else s.target.unsqueeze(0) for s in samples]
    return Batch(
        index=index,
        label=torch.tensor([s.label for s in samples]),
        x={m: torch.stack([s.x[m] for s in samples]) for m in first.x},
        present={m: torch.tensor([s.present[m] for s in samples]) for m in first.x},
        valid=index != PADDING,
        target=_join_targets(targets, [1] * len(samples)),
    )


def join(parts: Sequence[Batch]) -> Batch:
    """Concatenate batches as `Batch.concat` does, also if some have no target (NaN then)."""
    target = _join_targets([p.target for p in parts], [len(p) for p in parts])
    joined = Batch.concat([replace(p, target=None) for p in parts])
    return replace(joined, target=target)


def _join_targets(targets: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor | None:
    """Concatenate along the rows; NaN for rows without a target, None if no row has one."""
    shapes = {tuple(t.shape[1:]) for t in targets if t is not None}
    if not shapes:
        return None
    if len(shapes) > 1:
        raise UserError(
            f"members '{TARGET}.npy' differ in shape ({', '.join(map(str, sorted(shapes)))}): "
            "a regression target needs the same shape in every sample; build the data set again"
        )
    (shape,) = shapes
    filled = [
        torch.full((n, *shape), torch.nan) if t is None else t
        for t, n in zip(targets, rows, strict=True)
    ]
    return torch.cat(filled)
