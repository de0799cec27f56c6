"""What the loader must deliver: cores that decode, and bytes a second from the storage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from outmodal.data.decode import DecodeError
from outmodal.data.manifest import Dataset
from outmodal.data.shards import read_shard
from outmodal.data.transform import Transform

RATES = {
    "image": 400.0,
    "audio": 700.0,
    "video": 5.0,
    "text": 20_000.0,
    "series": 10_000.0,
    "vector": 30_000.0,
}
"""Samples a second that one core decodes and transforms, by kind, where there is no data set to
time: photographs of half a megapixel, seconds of audio, seconds of video."""

_TIMED = 48


@dataclass(frozen=True)
class Loading:
    """Demands of a step rate on each node.

    Attributes:
        per_core: Samples a second that one core gives.
        measured: Whether that was timed on the data set, or taken from `RATES`.
        cores: Cores of each node that decode.
        bytes_per_second: From the storage, all nodes together.
    """

    per_core: float
    measured: bool
    cores: float
    bytes_per_second: float


def demands(
    per_core: float, measured: bool, samples_per_second: float, nodes: int, sample_bytes: float
) -> Loading:
    """What a rate of samples asks of cores and storage."""
    cores = samples_per_second / per_core / nodes
    return Loading(per_core, measured, cores, samples_per_second * sample_bytes)


def assumed_rate(kinds: Mapping[str, str]) -> float:
    """Samples a second of one core for samples with these kinds of members."""
    return 1 / sum(1 / RATES[kind] for kind in kinds.values()) if kinds else RATES["vector"]


def timed_rate(dataset: Dataset, split: str, transforms: Mapping[str, Transform]) -> float:
    """Samples a second that this machine's core decodes and transforms, of the first ones."""
    shard = next(info for info in dataset.split(split).shards if info.samples)
    known = [m for m in transforms if m in dataset.manifest.modalities]
    found = {m: dataset.modality_in(shard, m) for m in known}
    specs = {m: spec for m, spec in found.items() if spec is not None}
    path = dataset.shard(shard)
    stop = min(_TIMED, shard.samples)
    begin = time.perf_counter()
    for _, key, members in read_shard(path, stop=stop):
        for name, spec in specs.items():
            data = members.get(f"{name}.{spec.ext}")
            if data is not None:
                _tolerant(transforms[name], spec, data, key)
    return stop / max(time.perf_counter() - begin, 1e-9)


def _tolerant(transform: Transform, spec: object, data: bytes, key: str) -> None:
    try:
        transform.from_bytes(spec, data, key)  # type: ignore[arg-type]
    except DecodeError:
        return  # the run counts and reports it; here only the time matters
