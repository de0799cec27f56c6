"""Running perceptors once over a data set, and keeping their features as a data set.

    OUT/train-000000.tar, ..., OUT/dataset.json    the features; the manifest is written last
    OUT/.embed/request.json                        what was asked for; it stays
    OUT/.embed/train-000000.tar.json               record of a finished shard, until the end

The same request gives the same bytes, whether it ran through or was killed and repeated. An
encoder's last bits depend on which rows share a batch, and so on what was encoded before; a
resumed run therefore reads the vectors of finished shards back into its memory of vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.decode import DecodeError, find_member
from outmodal.data.encode import encode_npy
from outmodal.data.manifest import (
    MANIFEST,
    RESERVED,
    Dataset,
    Manifest,
    Modality,
    ShardInfo,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.shards import ShardDamage, ShardWriter, read_shard
from outmodal.data.skips import SkipLedger, SkipRecord
from outmodal.errors import UserError, nearest
from outmodal.models.embed_record import (
    ShardRecord,
    claimed,
    finish,
    kept_record,
    write_record,
    writing,
)
from outmodal.models.perceptors import Perceptor
from outmodal.models.vector_memory import VectorMemory

DType = Literal["float32", "float16"]
Progress = Callable[[int, int], None]
"""Called with (samples done, samples in total) at the start and after every shard."""


def embed_dataset(
    dataset: Dataset,
    perceptors: Sequence[Perceptor],
    keep: Sequence[str],
    out: Path,
    dtype: DType = "float32",
    batch: int = 256,
    progress: Progress | None = None,
    max_skips: int = 100,
) -> Dataset:
    """Write the data set whose perceived modalities are vectors, or go on with one begun.

    Splits, shards, keys, classes, targets and json members stay as they are; modalities that
    are neither perceived nor kept are left out. A sample that lacks a modality lacks its vector.

    Args:
        dataset: The data set to read.
        perceptors: Frozen encoders, at most one a modality.
        keep: Modalities to pass through byte for byte.
        out: Folder; a finished data set of the same request is opened and returned.
        dtype: Type of the stored vectors, which have unit length.
        batch: Inputs encoded together.
        progress: Called at the start and after each shard.
        max_skips: Corrupt inputs to tolerate; each counts as a missing modality.

    Raises:
        UserError: An unknown modality, a broken shard, too many corrupt inputs, an `out` that
            holds something else or cannot be written.
    """
    by_modality = _check_request(dataset, perceptors, keep, dtype, batch)
    total = sum(split.samples for split in dataset.manifest.splits.values())
    report = progress or (lambda done, total: None)
    request = _request(dataset, by_modality, keep, dtype, batch)
    with writing(out), claimed(out, request):
        if not (out / MANIFEST).exists():
            ledger = SkipLedger(max_skips, str(dataset.root))
            embedder = _Embedder(dataset, by_modality, tuple(keep), out, dtype, batch, ledger)
            shards = embedder.run(lambda done: report(done, total))
            write_manifest(out, _manifest(dataset, by_modality, keep, shards))
            finish(out)
        report(total, total)
    return open_dataset(out)


def _check_request(
    dataset: Dataset,
    perceptors: Sequence[Perceptor],
    keep: Sequence[str],
    dtype: str,
    batch: int,
) -> dict[str, Perceptor]:
    """Return modality -> perceptor, or raise UserError."""
    by_modality: dict[str, Perceptor] = {}
    for perceptor in perceptors:
        name = perceptor.modality
        dataset.modality(name)
        if name in by_modality:
            raise UserError(f"two perceptors for modality '{name}': leave one of them out")
        if name in keep:
            raise UserError(
                f"modality '{name}' cannot be both embedded and kept: leave it out of keep"
            )
        by_modality[name] = perceptor
    for name in keep:
        dataset.modality(name)
    if not by_modality:
        raise UserError("no perceptor given: name at least one")
    if dtype not in ("float32", "float16"):
        raise UserError(f"dtype '{dtype}'{nearest(dtype, ['float32', 'float16'])}")
    if batch < 1:
        raise UserError(f"batch must be at least 1, got {batch}")
    return by_modality


def _request(
    dataset: Dataset,
    perceptors: Mapping[str, Perceptor],
    keep: Sequence[str],
    dtype: str,
    batch: int,
) -> dict[str, object]:
    """Everything that decides the bytes."""
    return {
        "dataset": dataset.fingerprint(),
        "perceptors": {m: p.identity for m, p in sorted(perceptors.items())},
        "inputs": {
            m: p.transform.config.model_dump(mode="json") for m, p in sorted(perceptors.items())
        },
        "keep": sorted(keep),
        "dtype": dtype,
        "batch": batch,
    }


def _manifest(
    dataset: Dataset,
    perceptors: Mapping[str, Perceptor],
    keep: Sequence[str],
    shards: Mapping[str, ShardInfo],
) -> Manifest:
    modalities: dict[str, Modality] = {}
    for name, spec in dataset.manifest.modalities.items():
        if name in perceptors:
            p = perceptors[name]
            modalities[name] = Modality(
                kind="vector", ext="npy", shape=(p.dim,), perceptor=p.identity
            )
        elif name in keep:
            modalities[name] = spec
    return dataset.manifest.model_copy(
        update={
            "modalities": modalities,
            "splits": {
                name: SplitInfo(
                    samples=split.samples, shards=tuple(shards[s.file] for s in split.shards)
                )
                for name, split in dataset.manifest.splits.items()
            },
        }
    )


@dataclass
class _Row:
    """One sample on its way: what it keeps, and the digests of what is encoded."""

    key: str
    members: dict[str, bytes]
    digests: dict[str, str] = field(default_factory=dict)


class _Embedder:
    """Goes through the shards in order, encoding what its memory of vectors does not hold."""

    def __init__(
        self,
        dataset: Dataset,
        perceptors: Mapping[str, Perceptor],
        keep: tuple[str, ...],
        out: Path,
        dtype: DType,
        batch: int,
        ledger: SkipLedger,
    ) -> None:
        self.dataset, self.perceptors, self.out = dataset, perceptors, out
        self.passed = {*RESERVED, *keep}
        self.dtype, self.batch, self.ledger = np.dtype(dtype), batch, ledger
        self.memories = {m: VectorMemory() for m in perceptors}

    def run(self, report: Callable[[int], None]) -> dict[str, ShardInfo]:
        """Make every shard that is not there yet; return all by file name."""
        done, made = 0, {}
        unread: list[ShardRecord] = []
        report(done)
        for split, number, info in self._shards():
            record = kept_record(self.out, info)
            if record is None:
                self._recall(unread)
                record = self._make(split, number, info)
            else:
                self.ledger.extend(SkipRecord(**skip) for skip in record.skips)
                unread.append(record)
            made[info.file] = record.shard
            done += info.samples
            report(done)
        return made

    def _shards(self) -> Iterator[tuple[str, int, ShardInfo]]:
        """Yield (split, position of its first sample, shard)."""
        for name, split in self.dataset.manifest.splits.items():
            first = 0
            for info in split.shards:
                yield name, first, info
                first += info.samples

    def _recall(self, records: list[ShardRecord]) -> None:
        """Bring the memories to what they were after these finished shards; empties the list."""
        for record in records[self._first_needed(records) :]:
            vectors: dict[str, dict[str, bytes]] = {m: {} for m in self.perceptors}
            for position, _, members in read_shard(self.out / record.shard.file):
                for modality, digests in record.digests.items():
                    digest = digests[position]
                    if digest is not None:
                        vectors[modality][digest] = members[f"{modality}.npy"]
            self._remember(record.digests, vectors)
        records.clear()

    def _first_needed(self, records: Sequence[ShardRecord]) -> int:
        """Position of the last record from which on the distinct vectors fill every memory."""
        room = {
            m: memory.holds(len(_npy(np.zeros(self.perceptors[m].dim), self.dtype)))
            for m, memory in self.memories.items()
        }
        seen: dict[str, set[str | None]] = {m: {None} for m in room}
        for number in reversed(range(len(records))):
            for modality, digests in records[number].digests.items():
                seen[modality].update(digests)
            if all(len(seen[m]) > room[m] for m in room):
                return number
        return 0

    def _remember(
        self,
        digests: Mapping[str, Sequence[str | None]],
        vectors: Mapping[str, Mapping[str, bytes]],
    ) -> None:
        for modality, memory in self.memories.items():
            for digest in digests[modality]:
                if digest is not None:
                    memory.put(digest, vectors[modality][digest])

    def _make(self, split: str, first: int, info: ShardInfo) -> ShardRecord:
        """Encode and write one shard, then its record."""
        skips: list[SkipRecord] = []
        coders = {
            m: _Coder(p, self.dataset.modality(m), self.memories[m], self.batch, self.dtype)
            for m, p in self.perceptors.items()
        }
        rows = []
        for position, key, members in self._read(info):
            row = _Row(key, {s: b for s, b in members.items() if _modality(s) in self.passed})
            for modality, coder in coders.items():
                try:
                    coder.add(modality, row, members)
                except DecodeError as error:
                    reason = f"{modality}: {error.reason}"
                    skips.append(SkipRecord(split, info.file, first + position, key, reason))
                    self.ledger.add(skips[-1])
            rows.append(row)
        vectors = {m: coder.finish() for m, coder in coders.items()}
        return self._write(info, rows, vectors, skips)

    def _read(self, info: ShardInfo) -> Iterator[tuple[int, str, dict[str, bytes]]]:
        try:
            yield from read_shard(self.dataset.shard_path(info), stop=info.samples)
        except ShardDamage as damage:
            raise UserError(
                f"{damage}; run `outmodal data check {self.dataset.root}`, mend the shard, and "
                "run the same command again: finished shards are kept"
            ) from None

    def _write(
        self,
        info: ShardInfo,
        rows: Sequence[_Row],
        vectors: Mapping[str, Mapping[str, bytes]],
        skips: Sequence[SkipRecord],
    ) -> ShardRecord:
        with ShardWriter(self.out / info.file) as shard:
            for row in rows:
                own = {f"{m}.npy": vectors[m][digest] for m, digest in row.digests.items()}
                # a sample keeps its place even where nothing is left of it
                shard.add(row.key, {**row.members, **own} or {"json": b"{}"})
        digests = {m: tuple(row.digests.get(m) for row in rows) for m in self.perceptors}
        self._remember(digests, vectors)
        record = ShardRecord.of(info, shard.info, digests, skips)
        write_record(self.out, record)
        return record


def _npy(vector: NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    """The bytes of a stored vector."""
    return encode_npy(vector.astype(dtype))


def _modality(suffix: str) -> str:
    """The modality of a member: the part before its first dot."""
    return suffix.partition(".")[0]


class _Coder:
    """Encodes one modality of one shard, every distinct input once."""

    def __init__(
        self,
        perceptor: Perceptor,
        spec: Modality,
        memory: VectorMemory,
        batch: int,
        dtype: np.dtype[Any],
    ) -> None:
        self.perceptor, self.spec, self.memory = perceptor, spec, memory
        self.batch, self.dtype = batch, dtype
        self.vectors: dict[str, bytes] = {}
        self.waiting: dict[str, Tensor] = {}
        # noise is drawn from the key, so equal bytes are equal inputs only under one key
        self.keyed = getattr(perceptor.transform.config, "noise", None) is not None

    def add(self, modality: str, row: _Row, members: Mapping[str, bytes]) -> None:
        """Take in one sample; notes the digest of its input in `row`. Raises DecodeError."""
        data = find_member(self.spec, modality, members)
        if data is None:
            return
        digest = self._digest(row.key, data)
        if digest not in self.vectors and digest not in self.waiting:
            known = self.memory.get(digest)
            if known is not None:
                self.vectors[digest] = known
            else:
                transform = self.perceptor.transform
                self.waiting[digest] = transform.from_bytes(self.spec, data, row.key)
        row.digests[modality] = digest
        if len(self.waiting) == self.batch:
            self._encode()

    def finish(self) -> dict[str, bytes]:
        """Encode what is waiting; return digest -> npy of everything that was added."""
        if self.waiting:
            self._encode()
        return self.vectors

    def _digest(self, key: str, data: bytes) -> str:
        salt = hashlib.blake2b(key.encode(), digest_size=16).digest() if self.keyed else b""
        return hashlib.blake2b(data, digest_size=16, person=salt).hexdigest()

    def _encode(self) -> None:
        found = self.perceptor.encode(torch.stack(list(self.waiting.values())))
        vectors = found.float().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise UserError(
                f"perceptor {self.perceptor.identity} gives values that are not finite: use "
                "precision fp32, or another perceptor"
            )
        for digest, vector in zip(self.waiting, vectors, strict=True):
            self.vectors[digest] = _npy(vector, self.dtype)
        self.waiting.clear()
