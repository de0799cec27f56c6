"""A bounded memory of vectors that were encoded already, by the digest of their input."""

from __future__ import annotations

from collections import OrderedDict

LIMIT = 256 << 20
"""Bytes of vectors held for one modality."""

OVERHEAD = 200
"""Bytes that an entry costs beside its vector, roughly."""


class VectorMemory:
    """The most recently put vectors.

    Looking a vector up does not count as use: what is held depends on the sequence of `put`
    alone, so that the same sequence always leads to the same memory.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._size = 0
        self._vectors: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def holds(self, size: int) -> int:
        """How many vectors of `size` bytes fit."""
        return self.limit // (size + OVERHEAD)

    def get(self, digest: str) -> bytes | None:
        """Return a vector's npy bytes, or None."""
        return self._vectors.get(digest)

    def put(self, digest: str, vector: bytes) -> None:
        """Hold a vector as the newest, and let go of the oldest ones beyond the limit."""
        old = self._vectors.pop(digest, None)
        if old is not None:
            self._size -= len(old) + OVERHEAD
        self._vectors[digest] = vector
        self._size += len(vector) + OVERHEAD
        while self._size > self.limit:
            _, dropped = self._vectors.popitem(last=False)
            self._size -= len(dropped) + OVERHEAD
