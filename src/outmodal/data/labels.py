"""The class of every sample of a split, without reading anything else of it."""

from __future__ import annotations

import io
import logging
import re

import numpy as np
from numpy.typing import NDArray

from outmodal.data.cache import cache_dir, write_atomic
from outmodal.data.manifest import Dataset, ShardInfo
from outmodal.data.shards import ShardDamage, read_members, scan_shard
from outmodal.errors import UserError

ABSENT = -1
"""The label of a sample that has no class."""

LABEL = "cls"
LABEL_BYTES = 32
"""A class is a decimal integer; more bytes than this are no class."""

_INTEGER = re.compile(rb"\s*[+-]?[0-9]+\s*")
_log = logging.getLogger(__name__)


def read_labels(dataset: Dataset, split: str) -> NDArray[np.int64]:
    """Return the class of every sample of `split` in the order of its shards, int64 [N].

    A sample without a `.cls` member gets -1. The result is kept in the cache folder under the
    data set's fingerprint. Raises UserError that names shard, key and value for a label that
    is no integer or outside the classes, and for a shard that disagrees with the manifest.
    """
    own = dataset.own_labels(split)
    if own is not None:
        return own
    info = dataset.split(split)
    cached = _load(dataset, split, info.samples)
    if cached is not None:
        return cached
    labels = np.concatenate([shard_labels(dataset, shard) for shard in info.shards])
    _store(dataset, split, labels)
    return labels


def shard_labels(dataset: Dataset, shard: ShardInfo) -> NDArray[np.int64]:
    """Return the classes of one shard, int64 [samples]; errors as in `read_labels`."""
    place = dataset.shard(shard)
    labels = np.full(shard.samples, ABSENT, np.int64)
    classes = dataset.classes_in(shard)
    try:
        index = scan_shard(place)
        if index.damage or len(index) != shard.samples:
            raise UserError(
                f"{place.where}: holds {len(index)} whole samples, "
                f"the manifest says {shard.samples}{f' ({index.damage})' if index.damage else ''}; "
                f"run `outmodal data check {dataset.where}` and restore the shard"
            )
        if index.labels is not None and index.labels.max(initial=ABSENT) < classes:
            known = index.labels.tolist()
            return np.array([_label(dataset, shard, raw) for raw in known], np.int64)
        for position, data in read_members(place, index, LABEL, LABEL_BYTES):
            if data is not None:
                where = f"{place.where}: sample '{index.keys[position]}'"
                labels[position] = _label(dataset, shard, parse_label(data, classes, where))
    except ShardDamage as error:
        raise UserError(f"{dataset.where}: {error}; restore the shard") from None
    return labels


def _label(dataset: Dataset, shard: ShardInfo, raw: int) -> int:
    return ABSENT if raw == ABSENT else dataset.label(shard, raw)


def parse_label(data: bytes, classes: int, where: str) -> int:
    """Return the class that a `.cls` member holds; UserError, led by `where`, if it holds none."""
    shown = data[:LABEL_BYTES].decode("utf-8", "backslashreplace").strip()
    if len(data) > LABEL_BYTES or not _INTEGER.fullmatch(data):
        raise UserError(f"{where}: label '{shown}' is not an integer; expected 0..{classes - 1}")
    label = int(data)
    if not 0 <= label < classes:
        raise UserError(
            f"{where}: label {shown} is outside 0..{classes - 1}: the manifest names "
            f"{classes} classes; correct the label or the list of classes"
        )
    return label


def _load(dataset: Dataset, split: str, samples: int) -> NDArray[np.int64] | None:
    """Return cached labels if they are there and fit."""
    path = cache_dir() / "labels" / f"{dataset.fingerprint()}-{split}.npy"
    try:
        found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # absent or broken: it is made again
    if not isinstance(found, np.ndarray) or found.dtype != np.int64 or found.shape != (samples,):
        return None
    if samples and not ABSENT <= found.min() <= found.max() < len(dataset.manifest.classes):
        return None
    return found


def _store(dataset: Dataset, split: str, labels: NDArray[np.int64]) -> None:
    """Cache labels; a folder that cannot be written costs only the next reading's time."""
    folder = cache_dir() / "labels"
    buffer = io.BytesIO()
    np.save(buffer, labels, allow_pickle=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{dataset.fingerprint()}-{split}.npy", buffer.getvalue())
    except OSError as error:
        _log.warning("labels are not cached in %s: %s", folder, error)
