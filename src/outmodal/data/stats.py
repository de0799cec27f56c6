"""Counting a data set: samples, sizes, classes, gaps, durations, values, duplicates, leakage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outmodal.data.check import all_shards
from outmodal.data.check_sample import Expected
from outmodal.data.duplicates import find_duplicates
from outmodal.data.labels import ABSENT, read_labels
from outmodal.data.manifest import Dataset, ShardInfo
from outmodal.data.moments import Moments
from outmodal.data.shards import ShardDamage, scan_shard
from outmodal.data.spread import even_positions, remedy
from outmodal.data.stats_shard import NOTHING, WHOLE, ModalityCount, ShardCount, count_shard
from outmodal.data.tasks import Progress, run_tasks
from outmodal.errors import UserError


def dataset_stats(
    dataset: Dataset, sample: int = 0, workers: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Return the counts of a data set in JSON values; the same for any number of workers.

    Args:
        dataset: The data set.
        sample: Decode only so many samples of each split, evenly spread; 0 decodes all. Counts,
            classes, gaps and bytes are always those of the whole split.
        workers: Processes; 0 works in this one.
        progress: Called with (shards done, shards in total).

    Returns:
        splits: For each split samples, decoded, shards, bytes, unlabelled, classes (name ->
            samples), balance, and for each modality present, missing_rate, bytes, corrupt, each
            fact's min, mean, max and total (seconds: the total duration), and `values`: count,
            mean, std, min, max of each channel (see `ModalityCount`), an entry for each number
            of channels.
        duplicates: Modality, and "whole sample" -> members of equal bytes, within a split and
            shared by two splits (leakage), with examples.

    Raises:
        UserError: A shard is damaged, or is not what the manifest says.
    """
    shards = all_shards(dataset)
    wanted = _wanted(dataset, sample)
    calls = [
        (dataset.shard(shard), Expected.of(dataset, shard).modalities, shard, chosen)
        for (_, shard), chosen in zip(shards, wanted, strict=True)
    ]
    counts: dict[int, ShardCount] = {}
    for position, found in _counted(dataset, calls, workers):
        counts[position] = found
        if progress is not None:
            progress(len(counts), len(shards))
    return {
        "name": dataset.manifest.name,
        "fingerprint": dataset.fingerprint(),
        "modalities": {
            name: spec.model_dump(mode="json", exclude_none=True)
            for name, spec in dataset.manifest.modalities.items()
        },
        "splits": {
            name: _split(dataset, name, [counts[n] for n, (s, _) in enumerate(shards) if s == name])
            for name in dataset.manifest.splits
        },
        "duplicates": _duplicates(dataset, counts),
    }


def _wanted(dataset: Dataset, sample: int) -> list[tuple[int, ...] | None]:
    """Return, for each shard, the positions to decode; None is all of them."""
    wanted: list[tuple[int, ...] | None] = []
    for split in dataset.manifest.splits.values():
        chosen = even_positions(split.samples, sample)
        first = 0
        for shard in split.shards:
            inside = chosen[(chosen >= first) & (chosen < first + shard.samples)] - first
            whole = sample <= 0 or len(inside) == shard.samples
            wanted.append(None if whole else tuple(inside.tolist()))
            first += shard.samples
    return wanted


def _counted(
    dataset: Dataset, calls: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, ShardCount]]:
    """Count shards; damage and the death of a process become UserErrors."""
    try:
        for position, found in run_tasks(count_shard, calls, workers):
            place, shard = calls[position][0], calls[position][2]
            if found is None:
                raise UserError(f"{place.where}: a process died at it; use fewer --workers")
            if isinstance(found, str):
                raise UserError(f"{_named(dataset, shard)}: {found}; {remedy(dataset)}")
            yield position, found
    except ShardDamage as damage:
        raise UserError(f"{dataset.where}: {damage}; {remedy(dataset)}") from None


def _named(dataset: Dataset, shard: ShardInfo) -> str:
    return dataset.shard(shard).where


def _split(dataset: Dataset, name: str, counts: Sequence[ShardCount]) -> dict[str, Any]:
    info = dataset.manifest.splits[name]
    totals = {modality: ModalityCount() for modality in dataset.manifest.modalities}
    for count in counts:
        for modality, part in count.modalities.items():
            totals[modality].merge(part)
    return {
        "samples": info.samples,
        "decoded": sum(count.read for count in counts),
        "shards": len(info.shards),
        "bytes": sum(shard.bytes for shard in info.shards),
        **_classes(dataset, name),
        "modalities": {
            modality: _modality(total, info.samples) for modality, total in totals.items()
        },
    }


def _classes(dataset: Dataset, split: str) -> dict[str, Any]:
    """Samples of each class. Balance is the entropy of the classes over its largest value."""
    names = dataset.manifest.classes
    if not dataset.manifest.splits[split].samples:
        return {"unlabelled": 0, "classes": {}, "balance": None}
    labels = read_labels(dataset, split)
    found = np.bincount(labels[labels != ABSENT], minlength=len(names))
    share = found[found > 0] / max(found.sum(), 1)
    entropy = -float((share * np.log(share)).sum())
    return {
        "unlabelled": int((labels == ABSENT).sum()),
        "classes": dict(zip(names, found.tolist(), strict=True)),
        "balance": round(entropy / np.log(len(names)), 6) if len(names) > 1 else None,
    }


def _modality(count: ModalityCount, samples: int) -> dict[str, Any]:
    missing = 1 - count.present / samples if samples else 0.0
    return {
        "present": count.present,
        "missing_rate": round(missing, 6),
        "bytes": count.bytes,
        "corrupt": count.corrupt,
        **{name: _fact(moments) for name, moments in count.facts.items()},
        "values": [
            {"columns": columns, **moments.as_json()}
            for columns, moments in sorted(count.values.items())
        ],
    }


def _fact(moments: Moments) -> dict[str, float]:
    low, mean, high = (float(v[0]) for v in (moments.low, moments.mean, moments.high))
    total = round(mean * moments.count, 3)
    return {"min": low, "mean": round(mean, 6), "max": high, "total": total}


def _duplicates(dataset: Dataset, counts: Mapping[int, ShardCount]) -> dict[str, Any]:
    shards = all_shards(dataset)
    splits = list(dataset.manifest.splits)
    result = {}
    for name in (*dataset.manifest.modalities, WHOLE):
        parts = [counts[n].digests.get(name, NOTHING) for n in range(len(shards))]
        if not parts:
            continue
        sizes = [len(positions) for positions, _ in parts]
        owner = np.repeat(np.arange(len(parts)), sizes)
        positions = np.concatenate([positions for positions, _ in parts])
        split = np.array([splits.index(s) for s, _ in shards], np.int64)[owner]
        found = find_duplicates(np.concatenate([d for _, d in parts]), split, splits)
        rows = [
            [_sample_name(dataset, shards[owner[row]][1], positions, row) for row in group]
            for group in found["examples"]
        ]
        result[name] = {**found, "examples": rows}
    return result


def _sample_name(dataset: Dataset, shard: ShardInfo, positions: NDArray[np.int64], row: int) -> str:
    return f"{shard.file}:{scan_shard(dataset.shard(shard)).keys[int(positions[row])]}"
