"""Counting a data set: samples, bytes, classes, missing modalities, sizes and durations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from outmodal.data.decode import DecodeError, find_member
from outmodal.data.describe import describe
from outmodal.data.labels import ABSENT, read_labels
from outmodal.data.manifest import Dataset, ShardInfo
from outmodal.data.shards import ShardDamage, ShardIndex, scan_shard
from outmodal.data.spread import remedy, spread_samples
from outmodal.errors import UserError

PROBED = 256
"""Samples of a split whose members are opened for sizes and durations, evenly spread."""


def dataset_stats(dataset: Dataset) -> dict[str, Any]:
    """Return the counts of a data set in JSON values.

    For each split: samples, shards, bytes, unlabelled, classes (name -> samples) and, for each
    modality, present, missing_rate, bytes, and the smallest, mean and largest of each number
    that `describe` gives for the members of up to PROBED samples. Counts come from headers alone.
    Raises UserError that names the shard if one is damaged.
    """
    splits = {name: _split(dataset, name) for name in dataset.manifest.splits}
    return {
        "name": dataset.manifest.name,
        "fingerprint": dataset.fingerprint(),
        "modalities": {
            name: spec.model_dump(mode="json", exclude_none=True)
            for name, spec in dataset.manifest.modalities.items()
        },
        "splits": splits,
    }


def _split(dataset: Dataset, name: str) -> dict[str, Any]:
    info = dataset.manifest.splits[name]
    indexes = [_index(dataset, shard) for shard in info.shards]
    counts: dict[str, int] = {}
    unlabelled = 0
    if info.samples:
        labels = read_labels(dataset, name)
        found = np.bincount(labels[labels != ABSENT], minlength=len(dataset.manifest.classes))
        counts = dict(zip(dataset.manifest.classes, found.tolist(), strict=True))
        unlabelled = int((labels == ABSENT).sum())
    probes = _probe(dataset, name)
    return {
        "samples": info.samples,
        "shards": len(info.shards),
        "bytes": sum(shard.bytes for shard in info.shards),
        "unlabelled": unlabelled,
        "classes": counts,
        "modalities": {
            modality: {
                **_presence(indexes, f"{modality}.{spec.ext}", info.samples),
                **probes[modality],
            }
            for modality, spec in dataset.manifest.modalities.items()
        },
    }


def _index(dataset: Dataset, shard: ShardInfo) -> ShardIndex:
    try:
        index = scan_shard(dataset.shard_path(shard))
    except ShardDamage as damage:
        raise UserError(f"{dataset.root}: {damage}; {remedy(dataset)}") from None
    if index.damage or len(index) != shard.samples:
        raise UserError(
            f"{dataset.shard_path(shard)}: holds {len(index)} whole samples, the manifest says "
            f"{shard.samples}; {remedy(dataset)}"
        )
    return index


def _presence(indexes: Sequence[ShardIndex], suffix: str, samples: int) -> dict[str, Any]:
    """Count a modality's members and their bytes."""
    present = total = 0
    for index in indexes:
        for position in range(len(index)):
            for member in index.members(position):
                if member.suffix == suffix:
                    present += 1
                    total += member.size
    missing = 1 - present / samples if samples else 0.0
    return {"present": present, "missing_rate": round(missing, 6), "bytes": total}


def _probe(dataset: Dataset, split: str) -> dict[str, dict[str, Any]]:
    """Describe the members of evenly spread samples; corrupt ones are counted."""
    specs = dataset.manifest.modalities
    values: dict[str, dict[str, list[float]]] = {name: {} for name in specs}
    corrupt = dict.fromkeys(specs, 0)
    for sample in spread_samples(dataset, split, PROBED):
        for name, spec in specs.items():
            try:
                data = find_member(spec, name, sample.members)
                facts = {} if data is None else describe(spec.kind, spec.ext, data)
            except DecodeError:
                corrupt[name] += 1
                continue
            for fact, value in facts.items():
                values[name].setdefault(fact, []).append(value)
    return {name: {"corrupt": corrupt[name], **_summaries(values[name])} for name in specs}


def _summaries(facts: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"min": min(v), "mean": round(sum(v) / len(v), 6), "max": max(v)}
        for name, v in facts.items()
    }
