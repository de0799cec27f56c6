"""A bounded memory of read samples, so that later epochs do not read and decode them again."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.manifest import Modality

OVERHEAD = 512
"""Bytes that an entry costs beside its tensor, roughly."""


@dataclass(frozen=True)
class Input:
    """One modality of a sample: its compact tensor, or `present` False and None."""

    value: Tensor | None
    present: bool


@dataclass(frozen=True)
class Raw:
    """One modality of a sample before what is drawn anew in every epoch.

    Attributes:
        value: What a decoder gave, or the member's bytes where the transform decodes itself.
        spec: What the bytes are; None for decoded values.
    """

    value: NDArray[Any] | str | bytes
    spec: Modality | None = None


@dataclass(frozen=True)
class Facts:
    """What a sample holds beside its modalities: class (-1 where absent), target, key."""

    label: int
    target: Tensor | None
    key: str = ""


Entry = Input | Raw | Facts
Form = Literal["input", "raw", "facts"]
Key = tuple[str, int, str, Form]
"""(split, index, modality, form); the modality of a sample's facts is ""."""


class SampleCache:
    """What came first stays: a full cache takes nothing more.

    Every epoch and every pass asks for each sample once, in another order. Such an access in
    turns is the worst case of caches that drop what was used longest ago: where the data are a
    little larger than the cache, they drop each entry just before it is asked for, and every
    request misses. Without eviction a cache that holds a part of the data serves that part of
    the requests, which is the best that any policy reaches here: all entries are asked for
    equally often.

    A cache belongs to one data set and one set of transforms. What it holds is a pure function
    of a member's bytes and the sample's key, so a cached entry is exact. Safe for threads.

    Args:
        limit: Bytes to hold; 0 holds nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._entries: dict[Key, Entry] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Entry | None:
        """Return an entry."""
        return self._entries.get(key)

    def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry, in memory of its own, if there is room."""
        if self.bytes + OVERHEAD > self.limit:
            return
        cost = _cost(entry)
        with self._lock:
            if key in self._entries or self.bytes + cost > self.limit:
                return
            self.bytes += cost
            self._entries[key] = _own(entry)


def _cost(entry: Entry) -> int:
    if isinstance(entry, Raw):
        value = entry.value
        return OVERHEAD + (value.nbytes if isinstance(value, np.ndarray) else sys.getsizeof(value))
    tensor = entry.value if isinstance(entry, Input) else entry.target
    return OVERHEAD + (0 if tensor is None else tensor.nbytes)


def _own(entry: Entry) -> Entry:
    """Copy what may be a view that keeps a longer recording alive."""
    if isinstance(entry, Raw):
        value = entry.value
        return Raw(value.copy(), entry.spec) if isinstance(value, np.ndarray) else entry
    if isinstance(entry, Facts):
        return Facts(entry.label, None if entry.target is None else entry.target.clone(), entry.key)
    return Input(None if entry.value is None else entry.value.clone(), entry.present)
