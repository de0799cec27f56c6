"""One shard of features: its distinct inputs encoded in batches, everything else passed on.

An encoder's last bits depend on which rows share a batch. Batches are therefore made of one
shard's inputs only, in their order: a shard's bytes follow from the shard and from the vectors of
common inputs (`embed_common`), whoever makes it and whenever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.decode import DecodeError, find_member
from outmodal.data.encode import encode_npy
from outmodal.data.manifest import RESERVED, Dataset, Modality, ShardInfo
from outmodal.data.shards import ShardDamage, ShardWriter, read_shard
from outmodal.data.skips import SkipLedger, SkipRecord
from outmodal.errors import UserError
from outmodal.models.embed_record import ShardRecord, write_record
from outmodal.models.perceptors.base import Perceptor


class Coder:
    """Encodes one modality of one shard, every distinct input once.

    Args:
        perceptor: What encodes.
        spec: The data set's record of the modality.
        known: Digest -> stored vector of inputs that need no encoding.
        batch: Inputs encoded together.
        dtype: Type of stored vectors.
    """

    def __init__(
        self,
        perceptor: Perceptor,
        spec: Modality,
        known: Mapping[str, bytes],
        batch: int,
        dtype: np.dtype[Any],
    ) -> None:
        self.perceptor, self.spec, self.known = perceptor, spec, known
        self.batch, self.dtype = batch, dtype
        self.vectors: dict[str, bytes] = {}
        self.waiting: dict[str, Tensor] = {}

    def add(self, key: str, data: bytes) -> str:
        """Take in one input and return its digest. Raises DecodeError."""
        name = digest(self.perceptor, key, data)
        if name in self.known:
            self.vectors[name] = self.known[name]
        elif name not in self.vectors and name not in self.waiting:
            self.waiting[name] = self.perceptor.transform.read(self.spec, data, key)
            if len(self.waiting) == self.batch:
                self._encode()
        return name

    def finish(self) -> dict[str, bytes]:
        """Encode what is waiting; return digest -> npy of everything that was added."""
        if self.waiting:
            self._encode()
        return self.vectors

    def _encode(self) -> None:
        found = self.perceptor.encode(torch.stack(list(self.waiting.values())))
        vectors: NDArray[np.float32] = found.float().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise UserError(
                f"perceptor {self.perceptor.identity} gives values that are not finite: use "
                "precision fp32, or another perceptor"
            )
        for name, vector in zip(self.waiting, vectors, strict=True):
            self.vectors[name] = encode_npy(vector.astype(self.dtype))
        self.waiting.clear()


def digest(perceptor: Perceptor, key: str, data: bytes) -> str:
    """Name of an input: 32 hexadecimal digits, equal for what gives equal tensors.

    Noise is drawn from the key, so with noise equal bytes are equal inputs only under one key.
    """
    transform = perceptor.transform
    keyed = getattr(transform, "keyed", False) or getattr(transform.config, "noise", None)
    salt = hashlib.blake2b(key.encode(), digest_size=16).digest() if keyed else b""
    return hashlib.blake2b(data, digest_size=16, person=salt).hexdigest()


@dataclass
class _Row:
    """One sample on its way: what it keeps, and the digests of what is encoded."""

    key: str
    members: dict[str, bytes]
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """A shard of the data set.

    Attributes:
        split: Its split.
        first: Position in the split of its first sample.
        info: Its record in the manifest.
    """

    split: str
    first: int
    info: ShardInfo


class ShardMaker:
    """Makes shards of features, in any order.

    Args:
        dataset: The data set to read.
        perceptors: Modality -> what encodes it.
        keep: Modalities to pass through.
        out: Folder of the features.
        dtype: Type of stored vectors.
        batch: Inputs encoded together.
    """

    def __init__(
        self,
        dataset: Dataset,
        perceptors: Mapping[str, Perceptor],
        keep: Sequence[str],
        out: Path,
        dtype: np.dtype[Any],
        batch: int,
    ) -> None:
        self.dataset, self.perceptors, self.out = dataset, perceptors, out
        self.passed = {*RESERVED, *keep}
        self.dtype, self.batch = dtype, batch

    def coder(self, modality: str, known: Mapping[str, bytes]) -> Coder:
        """Return a fresh coder for one shard."""
        spec = self.dataset.modality(modality)
        return Coder(self.perceptors[modality], spec, known, self.batch, self.dtype)

    def make(
        self, place: Place, known: Mapping[str, Mapping[str, bytes]], ledger: SkipLedger
    ) -> ShardRecord:
        """Encode and write one shard, then its record.

        Args:
            place: The shard.
            known: Modality -> digest -> stored vector of common inputs.
            ledger: Counts corrupt inputs, each of which is a missing modality.
        """
        skips: list[SkipRecord] = []
        coders = {m: self.coder(m, known[m]) for m in self.perceptors}
        rows = []
        for position, key, members in self._read(place.info):
            row = _Row(key, {s: b for s, b in members.items() if _modality(s) in self.passed})
            for modality, coder in coders.items():
                try:
                    data = find_member(coder.spec, modality, members)
                    if data is not None:
                        row.digests[modality] = coder.add(key, data)
                except DecodeError as error:
                    index, reason = place.first + position, f"{modality}: {error.reason}"
                    skips.append(SkipRecord(place.split, place.info.file, index, key, reason))
                    ledger.add(skips[-1])
            rows.append(row)
        vectors = {m: coder.finish() for m, coder in coders.items()}
        return self._write(place.info, rows, vectors, skips)

    def _read(self, info: ShardInfo) -> Iterator[tuple[int, str, dict[str, bytes]]]:
        try:
            yield from read_shard(self.dataset.shard(info), stop=info.samples)
        except ShardDamage as damage:
            raise UserError(
                f"{damage}; run `outmodal data check {self.dataset.where}`, mend the shard, and "
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
                own = {f"{m}.npy": vectors[m][name] for m, name in row.digests.items()}
                # a sample keeps its place even where nothing is left of it
                shard.add(row.key, {**row.members, **own} or {"json": b"{}"})
        record = ShardRecord.of(info, shard.info, skips)
        write_record(self.out, record)
        return record


def _modality(suffix: str) -> str:
    """The modality of a member: the part before its first dot."""
    return suffix.partition(".")[0]
