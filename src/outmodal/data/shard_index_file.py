"""The index file `<shard>.tar.index`: where a shard's samples lie, and their labels.

With it a shard needs no pass over its headers and its labels no reading of members, which is what
makes a remote or a giant shard cheap to start with. It is a safetensors file of one-dimensional
arrays, N samples, M members:

    about     uint8   JSON: {"format": 1, "bytes": of the shard, "sha256": of it, "suffixes": [...]}
    keys      uint8   all keys behind each other, UTF-8;  key_ends  int64 [N]
    first     int64   [N+1] row of each sample's first member
    suffix    int32   [M] number in `suffixes`
    offsets, sizes    int64 [M];  checks  uint32 [M] crc32 of each member's header block
    labels    int64   [N], -1 for none; absent where a label is no class number

An index is believed only if it fits the bytes and the sha256 of the manifest and is consistent in
itself: nothing in it can lead a reader outside the shard.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from outmodal.data.cache import write_atomic
from outmodal.data.shard_index import ShardIndex
from outmodal.data.store import ShardPlace
from outmodal.data.store_local import INDEX, LARGEST_INDEX

FORMAT = 1
BLOCK = 512

_log = logging.getLogger(__name__)
_warned: set[str] = set()
_INTEGER = re.compile(rb"\s*[+-]?[0-9]{1,18}\s*")
_DTYPES: Mapping[str, tuple[str, Any]] = {
    "about": ("U8", np.uint8),
    "keys": ("U8", np.uint8),
    "key_ends": ("I64", np.int64),
    "first": ("I64", np.int64),
    "suffix": ("I32", np.int32),
    "offsets": ("I64", np.int64),
    "sizes": ("I64", np.int64),
    "checks": ("U32", np.uint32),
    "labels": ("I64", np.int64),
}


class _Unfit(Exception):
    """The file is no index of this shard."""


def index_name(shard: str) -> str:
    """Return the name of the index file of a shard."""
    return shard + INDEX


def label_array(members: Iterable[bytes | None]) -> NDArray[np.int64] | None:
    """Return the classes in the `.cls` members of a shard, int64 [N], -1 where there is none.

    None if one of them is no class number: readers then come to it, and name it.
    """
    labels = []
    for data in members:
        if data is not None and not _INTEGER.fullmatch(data):
            return None
        labels.append(-1 if data is None else int(data))
        if data is not None and labels[-1] < 0:
            return None
    return np.array(labels, np.int64)


def write_index(
    folder: Path, index: ShardIndex, sha256: str, labels: NDArray[np.int64] | None
) -> Path:
    """Write the index file of a whole shard into `folder`, atomically; OSError if that fails.

    Args:
        folder: Where the shard lies.
        index: Of the shard, without damage.
        sha256: Of the shard's bytes.
        labels: [N] classes, -1 for none; None where they could not be read.
    """
    path = folder / index_name(index.file)
    write_atomic(path, pack_index(index, sha256, labels))
    return path


def pack_index(index: ShardIndex, sha256: str, labels: NDArray[np.int64] | None) -> bytes:
    """Return the content of an index file; the same shard always gives the same bytes."""
    table = sorted(set(index.names))
    number = {suffix: n for n, suffix in enumerate(table)}
    about = {"format": FORMAT, "bytes": index.bytes, "sha256": sha256, "suffixes": table}
    keys = [key.encode() for key in index.keys]
    arrays: dict[str, NDArray[Any]] = {
        "about": _bytes(json.dumps(about, separators=(",", ":")).encode()),
        "keys": _bytes(b"".join(keys)),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
        "first": index.first.astype(np.int64),
        "suffix": np.array([number[name] for name in index.names], np.int32),
        "offsets": index.offsets.astype(np.int64),
        "sizes": index.sizes.astype(np.int64),
        "checks": index.checks.astype(np.uint32),
    }
    if labels is not None:
        arrays["labels"] = labels.astype(np.int64)
    return save(arrays)


def load_index(place: ShardPlace, size: int) -> ShardIndex | None:
    """Return what the index file beside a shard says, None if there is none that fits.

    Args:
        place: The shard. Without a manifest's checksum no index file is believed.
        size: Bytes that the shard has now.

    One that does not fit is ignored, with one warning for each folder.
    """
    expected = place.expected()
    if expected is None or size != expected[0]:
        return None
    data = place.index_bytes()
    if data is None:
        return None
    try:
        return _parse(place.name, data, *expected)
    except _Unfit as error:
        folder = place.where.rpartition("/")[0]
        if folder not in _warned:
            _warned.add(folder)
            _log.warning(
                "%s: ignored: %s; make the index files of this data set again with "
                "`outmodal data index %s`",
                index_name(place.where), error, folder,
            )  # fmt: skip
        return None


def index_problem(place: ShardPlace) -> str | None:
    """Say what is wrong with the index file beside a shard; None if it fits or is absent."""
    expected, data = place.expected(), place.index_bytes()
    if expected is None or data is None:
        return None
    try:
        _parse(place.name, data, *expected)
    except _Unfit as error:
        return str(error)
    return None


def parse_index(name: str, data: bytes, size: int, sha256: str) -> ShardIndex:
    """Return the index of the shard `name` from its index file's bytes; ValueError if unfit.

    Args:
        name: File name of the shard.
        data: Whatever lies in the index file.
        size, sha256: What the manifest says of the shard.
    """
    try:
        return _parse(name, data, size, sha256)
    except _Unfit as error:
        raise ValueError(str(error)) from None


def _parse(name: str, data: bytes, size: int, sha256: str) -> ShardIndex:
    arrays = _arrays(data)
    table = _suffixes(arrays["about"], size, sha256)
    keys = _keys(arrays["keys"], arrays["key_ends"])
    first, offsets, sizes = arrays["first"], arrays["offsets"], arrays["sizes"]
    members = len(offsets)
    for other in ("sizes", "checks", "suffix"):
        _require(len(arrays[other]) == members, f"{members} offsets, {len(arrays[other])} {other}")
    _require(len(first) == len(keys) + 1, f"{len(keys)} keys, {len(first)} rows of members")
    _require(first[0] == 0 and first[-1] == members, "rows that do not span the members")
    _require(bool((np.diff(first) > 0).all()), "a sample without members")
    ends = _ends(offsets, sizes, size)
    _check_suffixes(arrays["suffix"], first, len(table))
    labels = arrays.get("labels")
    if labels is not None:
        _require(len(labels) == len(keys), f"{len(keys)} keys, {len(labels)} labels")
        _require(bool((labels >= -1).all()), "a label below -1")
    return ShardIndex(
        file=name,
        bytes=size,
        keys=keys,
        starts=offsets[first[:-1]] - BLOCK,
        ends=ends[first[1:] - 1],
        damage=None,
        first=first,
        names=tuple(table[n] for n in arrays["suffix"].tolist()),
        offsets=offsets,
        sizes=sizes,
        checks=arrays["checks"],
        labels=labels,
    )


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of the file, of the right types and with one axis each."""
    _require(len(data) <= LARGEST_INDEX, f"{len(data)} bytes")
    try:
        parts = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, OverflowError, MemoryError) as error:
        raise _Unfit(f"not a safetensors file ({error})") from None
    missing = set(_DTYPES) - set(parts) - {"labels"}
    _require(not missing, f"without {', '.join(sorted(missing))}")
    arrays = {}
    for name, (code, dtype) in _DTYPES.items():
        if name in parts:
            part = parts[name]
            _require(part["dtype"] == code, f"{name} is {part['dtype']}, not {code}")
            _require(len(part["shape"]) == 1, f"{name} has {len(part['shape'])} axes")
            arrays[name] = np.frombuffer(bytes(part["data"]), dtype)
    return arrays


def _suffixes(about: NDArray[np.uint8], size: int, sha256: str) -> list[str]:
    """Check that the index is of this shard, and return its table of suffixes."""
    try:
        found = json.loads(about.tobytes())
    except (ValueError, RecursionError) as error:
        raise _Unfit(f"about is not JSON ({error})") from None
    _require(isinstance(found, dict), "about is not an object")
    _require(found.get("format") == FORMAT, f"format {found.get('format')!r:.40}, not {FORMAT}")
    same = found.get("bytes") == size and found.get("sha256") == sha256
    _require(same, "it is of another version of the shard")
    table = found.get("suffixes")
    good = isinstance(table, list) and all(isinstance(s, str) and s for s in table)
    _require(good and all(_fits(s) for s in table), "suffixes is not a list of names")
    return list(table)


def _fits(suffix: str) -> bool:
    try:
        suffix.encode()
    except UnicodeEncodeError:
        return False
    return suffix == suffix.lower() and not suffix.startswith("__") and "/" not in suffix


def _keys(blob: NDArray[np.uint8], ends: NDArray[np.int64]) -> tuple[str, ...]:
    _require(len(ends) > 0, "no samples")
    lengths = np.diff(ends, prepend=0)
    whole = bool((ends > 0).all()) and bool((ends <= len(blob)).all())
    _require(whole and bool((lengths > 0).all()) and ends[-1] == len(blob), "keys out of bounds")
    data, begin, keys = blob.tobytes(), 0, []
    try:
        for end in ends.tolist():
            keys.append(data[begin:end].decode())
            begin = end
    except UnicodeDecodeError:
        raise _Unfit("a key is not UTF-8") from None
    _require(all(a != b for a, b in pairwise(keys)), "a key twice in a row")
    return tuple(keys)


def _ends(offsets: NDArray[np.int64], sizes: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Check that the members follow each other inside the shard; return where each ends."""
    inside = (offsets >= BLOCK) & (offsets <= size) & (sizes >= 0) & (sizes <= size)
    _require(bool(inside.all()), "a member outside the shard")
    _require(not (offsets % BLOCK).any(), "a member between two blocks")
    ends = offsets + -(-sizes // BLOCK) * BLOCK
    _require(bool((ends <= size).all()), "a member behind the end of the shard")
    _require(bool((offsets[1:] - BLOCK >= ends[:-1]).all()), "members that overlap")
    return ends


def _check_suffixes(suffix: NDArray[np.int32], first: NDArray[np.int64], known: int) -> None:
    """Check that suffixes are in the table, and differ within each sample."""
    _require(bool(((suffix >= 0) & (suffix < known)).all()), "a suffix outside its table")
    sample = np.repeat(np.arange(len(first) - 1), np.diff(first))
    both = np.sort(sample * known + suffix)
    _require(not (both[1:] == both[:-1]).any(), "a sample with two members of one name")


def _require(good: bool | np.bool_, otherwise: str) -> None:
    if not good:
        raise _Unfit(otherwise)


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
