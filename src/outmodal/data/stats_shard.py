"""Counting one shard: what it holds by its headers, and what its members' values are like."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outmodal.data.decode import DecodeError, decode, find_member
from outmodal.data.describe import describe
from outmodal.data.manifest import Modality, ShardInfo
from outmodal.data.moments import Moments
from outmodal.data.shards import RawSample, ShardIndex, read_shard, scan_shard
from outmodal.data.store import ShardPlace

DIGEST = 16
"""Bytes of a content hash; with 10^9 members two different ones share one at odds of 10^-21."""

WHOLE = "whole sample"
"""Stands among the modalities for all of them together: a name that no modality can have."""


NOTHING = (np.zeros(0, np.int64), np.zeros((0, DIGEST), np.uint8))


@dataclass
class ModalityCount:
    """What one modality of some samples is like.

    Attributes:
        present: Samples that have it, by the headers.
        bytes: Of their members.
        corrupt: Members that cannot be decoded, of those that were read.
        facts: Fact of `describe` -> its moments over members, [1].
        values: Columns -> moments over the values: pixels in 0..1 by channel, amplitudes of a
            sound, steps of a series by channel, a vector by its elements.
    """

    present: int = 0
    bytes: int = 0
    corrupt: int = 0
    facts: dict[str, Moments] = field(default_factory=dict)
    values: dict[int, Moments] = field(default_factory=dict)

    def merge(self, other: ModalityCount) -> None:
        """Take in another count."""
        self.present += other.present
        self.bytes += other.bytes
        self.corrupt += other.corrupt
        for name, moments in other.facts.items():
            self.facts.setdefault(name, Moments(1)).merge(moments)
        for columns, moments in other.values.items():
            self.values.setdefault(columns, Moments(columns)).merge(moments)


@dataclass
class ShardCount:
    """What one shard is like.

    Attributes:
        modalities: Modality -> its count.
        digests: Modality, or WHOLE -> (positions [n], content hashes [n, 16] of uint8).
        read: Samples whose members were read.
    """

    modalities: dict[str, ModalityCount]
    digests: dict[str, tuple[NDArray[np.int64], NDArray[np.uint8]]]
    read: int


def count_shard(
    place: ShardPlace,
    specs: Mapping[str, Modality],
    shard: ShardInfo,
    wanted: tuple[int, ...] | None,
) -> ShardCount | str:
    """Count a shard; the members of the samples at `wanted`, or of all (None), are decoded.

    Returns what is wrong, in words, for a shard that does not hold what the manifest says.
    Raises ShardDamage if it breaks while it is read.
    """
    index = scan_shard(place)
    if index.damage or len(index) != shard.samples:
        return f"holds {len(index)} whole samples, the manifest says {shard.samples}"
    counts = {name: ModalityCount() for name in specs}
    _count_headers(index, specs, counts)
    hashes: dict[str, list[tuple[int, bytes]]] = {name: [] for name in (*counts, WHOLE)}
    read = 0
    for position, key, members in read_shard(place, select=wanted):
        read += 1
        sample = RawSample(key, shard.file, position, members)
        _count_sample(sample, specs, counts, hashes)
    return ShardCount(counts, {name: _packed(found) for name, found in hashes.items()}, read)


def _count_headers(
    index: ShardIndex, specs: Mapping[str, Modality], counts: Mapping[str, ModalityCount]
) -> None:
    owner = {f"{name}.{spec.ext}": counts[name] for name, spec in specs.items()}
    for position in range(len(index)):
        for member in index.members(position):
            count = owner.get(member.suffix)
            if count is not None:
                count.present += 1
                count.bytes += member.size


def _count_sample(
    sample: RawSample,
    specs: Mapping[str, Modality],
    counts: Mapping[str, ModalityCount],
    hashes: Mapping[str, list[tuple[int, bytes]]],
) -> None:
    whole = hashlib.blake2b(digest_size=DIGEST)
    held = 0
    for name, spec in specs.items():
        try:
            data = find_member(spec, name, sample.members)
            if data is None:
                continue
            digest = hashlib.blake2b(data, digest_size=DIGEST).digest()
            hashes[name].append((sample.index, digest))
            whole.update(name.encode() + b"\0" + digest)
            held += 1
            _count_member(counts[name], spec, data)
        except DecodeError:
            counts[name].corrupt += 1
    if held:
        hashes[WHOLE].append((sample.index, whole.digest()))


def _count_member(count: ModalityCount, spec: Modality, data: bytes) -> None:
    value = decode(spec, data)
    for name, fact in describe(spec.kind, spec.ext, data).items():
        count.facts.setdefault(name, Moments(1)).add(np.array([[fact]]))
    if isinstance(value, str):
        return
    rows, scale = _rows(spec, value)
    count.values.setdefault(rows.shape[1], Moments(rows.shape[1])).add(rows, scale)
    if spec.kind == "vector":
        norm = np.linalg.norm(value.astype(np.float64))
        count.facts.setdefault("length", Moments(1)).add(np.array([[norm]]))


def _rows(spec: Modality, value: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Return a value as [N, C], and the factor that brings pixels to 0..1."""
    if spec.kind in ("image", "video"):
        return value.reshape(-1, value.shape[-1]), 1.0 / np.iinfo(value.dtype).max
    return (value[None] if spec.kind == "vector" else value.reshape(len(value), -1)), 1.0


def _packed(found: list[tuple[int, bytes]]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    positions = np.array([position for position, _ in found], np.int64)
    digests = np.frombuffer(b"".join(digest for _, digest in found), np.uint8)
    return positions, digests.reshape(-1, DIGEST)
