"""Inputs that several shards hold: found first, encoded once, and known to all shards after that.

A thousand class prompts over a thousand shards are a thousand forwards. Looked for are inputs of
at most SMALL bytes (texts, vectors, short series): finding equal large ones would read the whole
data set twice, and equal pictures lie rarely in different shards.

    OUT/.embed/train-000000.tar.inputs.npz    hashes of a shard's small inputs
    OUT/.embed/train-000000.tar.common.npz    vectors of common inputs that are first in it
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outmodal.data.cache import write_atomic
from outmodal.data.decode import DecodeError
from outmodal.data.encode import encode_npy
from outmodal.data.manifest import Dataset
from outmodal.data.shards import ShardDamage, read_members, scan_shard
from outmodal.models.embed_record import WORK
from outmodal.models.embed_shard import Place, ShardMaker, digest
from outmodal.models.perceptors.base import Perceptor

SMALL = 4096
"""Bytes of the largest inputs that are looked for."""

LIMIT = 256 << 20
"""Bytes of common vectors that a process holds for one modality."""

OVERHEAD = 200
"""Bytes that an entry costs beside its vector, roughly."""

Owners = list[NDArray[np.uint64]]
"""For each shard the sorted hashes of the common inputs that it is the first to hold."""


class CommonInputs:
    """The common inputs of a data set under its perceptors.

    Args:
        maker: Data set, perceptors and folder.
        places: All shards, in order.
    """

    def __init__(self, maker: ShardMaker, places: Sequence[Place]) -> None:
        self.maker, self.places = maker, places
        self.names = sorted(maker.perceptors)
        self.owners: dict[str, Owners] = {}

    def scan(self, number: int) -> None:
        """Note the hashes of a shard's small inputs, unless that was done before."""
        path = self._file(number, "inputs")
        if path.is_file():
            return
        found = {}
        for i, modality in enumerate(self.names):
            perceptor = self.maker.perceptors[modality]
            inputs = _small_inputs(self.maker.dataset, self.places[number], modality)
            names = {_hash(digest(perceptor, key, data)) for key, data in inputs}
            found[f"h{i}"] = np.array(sorted(names), np.uint64)
        write_atomic(path, _packed(found))

    def assign(self) -> list[int]:
        """Find the common inputs, from the scans of all shards; return the shards to encode."""
        for i, modality in enumerate(self.names):
            hashes = [_unpacked(self._file(n, "inputs"))[f"h{i}"] for n in range(len(self.places))]
            room = _room(self.maker.perceptors[modality], self.maker.dtype)
            self.owners[modality] = first_holders(hashes, room)
        return [n for n in range(len(self.places)) if self._owned(n)]

    def encode(self, number: int) -> None:
        """Encode the common inputs that a shard is the first to hold, unless it was done."""
        path = self._file(number, "common")
        if path.is_file():
            return
        found: dict[str, NDArray[Any]] = {}
        for i, modality in enumerate(self.names):
            vectors = self._vectors(number, modality)
            if vectors:
                names = b"".join(bytes.fromhex(name) for name in vectors)
                found[f"d{i}"] = np.frombuffer(names, np.uint8).reshape(len(vectors), -1)
                found[f"v{i}"] = np.stack([_array(npy) for npy in vectors.values()])
        write_atomic(path, _packed(found))

    def table(self) -> dict[str, dict[str, bytes]]:
        """Modality -> digest -> stored vector, after the shards of `assign` were encoded."""
        known: dict[str, dict[str, bytes]] = {modality: {} for modality in self.names}
        for number in (n for n in range(len(self.places)) if self._owned(n)):
            held = _unpacked(self._file(number, "common"))
            for i, modality in enumerate(self.names):
                for name, vector in zip(held.get(f"d{i}", ()), held.get(f"v{i}", ()), strict=True):
                    known[modality][name.tobytes().hex()] = encode_npy(vector)
        return known

    def _vectors(self, number: int, modality: str) -> dict[str, bytes]:
        own = set(self.owners[modality][number].tolist())
        coder = self.maker.coder(modality, {})
        inputs = _small_inputs(self.maker.dataset, self.places[number], modality) if own else ()
        for key, data in inputs:
            if _hash(digest(coder.perceptor, key, data)) in own:
                try:
                    coder.add(key, data)
                except DecodeError:  # counted where the shards that hold it are made
                    continue
        return coder.finish()

    def _owned(self, number: int) -> bool:
        return any(len(owners[number]) for owners in self.owners.values())

    def _file(self, number: int, what: str) -> Path:
        return self.maker.out / WORK / f"{self.places[number].info.file}.{what}.npz"


def first_holders(hashes: Sequence[NDArray[np.uint64]], room: int) -> Owners:
    """Give each hash that several shards hold to the first of them.

    Args:
        hashes: For each shard its distinct hashes.
        room: Hashes to take at most: those that the most shards hold, and of equals the first.

    Returns:
        For each shard the hashes that it is given, sorted.
    """
    every = np.concatenate([*hashes, np.empty(0, np.uint64)])
    shard = np.repeat(np.arange(len(hashes)), [len(h) for h in hashes])
    order = np.lexsort((shard, every))
    value, start, count = np.unique(every[order], return_index=True, return_counts=True)
    owner = shard[order][start]
    common = np.flatnonzero(count > 1)
    chosen = common[np.lexsort((value[common], owner[common], -count[common]))][:room]
    return [np.sort(value[chosen][owner[chosen] == n]) for n in range(len(hashes))]


def _small_inputs(dataset: Dataset, place: Place, modality: str) -> Iterator[tuple[str, bytes]]:
    """Yield (key, bytes) of a shard's small inputs; what is damaged is reported elsewhere."""
    path = dataset.shard(place.info)
    suffix = f"{modality}.{dataset.modality(modality).ext}"
    try:
        index = scan_shard(path)
        for position, data in read_members(path, index, suffix, SMALL):
            if data is not None and len(data) <= SMALL:
                yield index.keys[position], data
    except ShardDamage:
        return


def _room(perceptor: Perceptor, dtype: np.dtype[Any]) -> int:
    """Vectors that LIMIT has room for."""
    return LIMIT // (len(encode_npy(np.zeros(perceptor.dim, dtype))) + OVERHEAD)


def _hash(name: str) -> int:
    return int(name[:16], 16)


def _array(npy: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(npy), allow_pickle=False)
    return array


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    held = io.BytesIO()
    np.savez(held, **arrays)  # type: ignore[arg-type]
    return held.getvalue()


def _unpacked(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as held:
        return dict(held)
