"""Mutations of a file: flipped bits, cuts, splices, repeated stretches, changed length fields."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from tests.fuzz.mend import mended

HEAD = 128
"""The first bytes hold most of what decides how much is allocated: half of all hits go there."""
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return `data` after one to six mutations; half of the results get right checksums."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if content:
            rng.choice(_MUTATIONS)(rng, content, others)
    return mended(bytes(content)) if rng.random() < 0.5 else bytes(content)


def _place(rng: random.Random, content: bytearray) -> int:
    end = min(HEAD, len(content)) if rng.random() < 0.5 else len(content)
    return rng.randrange(end)


def _bits(rng: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 4, 16))):
        content[_place(rng, content)] ^= 1 << rng.randrange(8)


def _bytes(rng: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    for _ in range(rng.choice((1, 2, 8))):
        content[_place(rng, content)] = rng.choice((0, 0xFF, rng.randrange(256)))


def _number(rng: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """Overwrite what may be a length: 2, 4 or 8 bytes of either order."""
    form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    number = rng.choice((*NUMBERS, len(content), rng.getrandbits(8 * size))) % (1 << 8 * size)
    at = _place(rng, content)
    content[at : at + size] = struct.pack(form, number)


def _cut(rng: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    del content[_place(rng, content) :]


def _remove(rng: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    at = _place(rng, content)
    del content[at : at + rng.choice((1, 4, 64))]


def _repeat(rng: random.Random, content: bytearray, _others: Sequence[bytes]) -> None:
    """Nest or repeat a stretch of the file in itself."""
    at, size = _place(rng, content), rng.choice((4, 32, 256))
    content[at:at] = content[at : at + size] * rng.choice((1, 2, 20))


def _splice(rng: random.Random, content: bytearray, others: Sequence[bytes]) -> None:
    """Continue with a stretch of another file, or of this one."""
    other = rng.choice(others) if others else bytes(content)
    at = rng.randrange(len(other)) if other else 0
    content[_place(rng, content) :] = other[at:]


_MUTATIONS: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    _bits,
    _bytes,
    _number,
    _number,
    _cut,
    _remove,
    _repeat,
    _splice,
)
