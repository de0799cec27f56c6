"""A bounded memory of transformed samples, so that later epochs do not decode them again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

OVERHEAD = 512
"""Bytes that an entry costs beside its tensor, roughly."""


@dataclass(frozen=True)
class Input:
    """One modality of a sample: its tensor, or `present` False and None."""

    value: Tensor | None
    present: bool


@dataclass(frozen=True)
class Facts:
    """What a sample holds beside its modalities: class (-1 where absent), regression target."""

    label: int
    target: Tensor | None


Entry = Input | Facts
Key = tuple[str, int, str | None]
"""(split, index, modality), modality None for the sample's facts."""


class SampleCache:
    """Least recently used entries go first.

    A cache belongs to one data set and one set of transforms. They are pure functions of a
    member's bytes and the sample's key, so a cached entry is exact.

    Args:
        limit: Bytes to hold; 0 holds nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._entries: OrderedDict[Key, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Entry | None:
        """Return an entry and mark it as used."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry, in memory of its own, and drop the oldest ones beyond the limit."""
        cost = _cost(entry)
        if cost > self.limit:
            return
        if key in self._entries:
            self.bytes -= _cost(self._entries.pop(key))
        self._entries[key] = _own(entry)
        self.bytes += cost
        while self.bytes > self.limit:
            self.bytes -= _cost(self._entries.popitem(last=False)[1])


def _cost(entry: Entry) -> int:
    tensor = entry.value if isinstance(entry, Input) else entry.target
    return OVERHEAD + (0 if tensor is None else tensor.nbytes)


def _own(entry: Entry) -> Entry:
    """Copy the tensor: it may be a view that keeps a longer recording alive."""
    if isinstance(entry, Facts):
        return Facts(entry.label, None if entry.target is None else entry.target.clone())
    return Input(None if entry.value is None else entry.value.clone(), entry.present)
