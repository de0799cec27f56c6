"""The order of a mixture: several plans, one for each source, woven together.

One stream, window W = 8, three sources with shares 1/2, 3/8 and 1/8:

    block 0                     block 1
    b a a c a b b a             a b a b c a b a            seeded order inside a block
    a: positions 0..3 of the    a: positions 4..7 of the
       same stream of a's plan     same stream of a's plan, and so on for b and c

How many samples of block n come from source k is not drawn but rounded: with cumulated shares
Q_0 = 0 <= Q_1 <= ... <= Q_K = 1 and a number u_n in [0, 1),

    count_k(n) = floor(u_n + W Q_k) - floor(u_n + W Q_(k-1)),

systematic sampling (Madow, 1949): at most one sample beside W times the share, none negative,
W in all. u_n = frac(u_0 + n alpha) with the golden ratio's alpha spreads what is rounded, so that
also a source with less than one sample a block comes up evenly. The number of samples before
block n is then a sum of floors of a line, which takes a few dozen integer operations for any n
(as in Graham, Knuth and Patashnik, Concrete Mathematics, 3.5). So a position is found without
walking, as in `plan`, and nothing depends on ranks or workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from outmodal.data.plan import Indices, Picks, Plan, permutation, picks_between, uniform

UNIT = 1 << 40
"""Shares are whole multiples of 1 / UNIT."""

_STEP = 679_535_556_991  # odd, and next to UNIT * (sqrt(5) - 1) / 2


def floor_sum(n: int, modulus: int, slope: int, offset: int) -> int:
    """Return the sum of floor((slope * i + offset) / modulus) over i = 0 .. n - 1.

    All arguments are non-negative, modulus at least 1; O(log modulus) steps.

    >>> floor_sum(4, 10, 6, 3)
    3
    """
    total = 0
    while n:
        total += n * (n - 1) // 2 * (slope // modulus) + n * (offset // modulus)
        slope, offset = slope % modulus, offset % modulus
        top = slope * n + offset
        n, offset, slope, modulus = top // modulus, top % modulus, modulus, slope
        if not modulus:
            break
    return total


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Return positive weights as multiples of 1 / UNIT, at least one each, that add up to UNIT."""
    total = sum(weights)
    shares = [max(1, round(weight / total * UNIT)) for weight in weights]
    largest = max(range(len(shares)), key=lambda k: (shares[k], -k))
    shares[largest] += UNIT - sum(shares)
    return tuple(shares)


@dataclass(frozen=True)
class Part:
    """One source in a plan.

    Attributes:
        plan: Order of its samples.
        share: Its part of all samples, in 1 / UNIT.
        source: Its number in the mixture.
        shard: Number of its first shard in the mixture's split.
        index: Number of its first sample in the mixture's split.
    """

    plan: Plan
    share: int
    source: int
    shard: int
    index: int


@dataclass(frozen=True, eq=False)
class MixPlan:
    """The endless order of each stream of a mixture in one epoch (see the module's picture).

    Attributes:
        seed, epoch, name, streams, window: As in `Plan`.
        parts: The sources; their shares add up to UNIT.
    """

    seed: int
    epoch: int
    name: str
    streams: int
    window: int
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if sum(part.share for part in self.parts) != UNIT:
            raise ValueError("the shares of a mixture must add up to UNIT")

    @cached_property
    def _ends(self) -> list[int]:
        """W Q_k for k = 0 .. K, in 1 / UNIT."""
        return [0, *accumulate(part.share * self.window for part in self.parts)]

    def _begin(self, stream: int) -> int:
        """u_0 of a stream: the streams are spread evenly, so that a batch is even as well."""
        drawn = uniform(UNIT, "mixture", self.seed, self.epoch, self.name)
        return (drawn + stream * UNIT // self.streams) % UNIT

    def _counts(self, stream: int, block: int) -> list[int]:
        """Samples of each source in one block."""
        u = (self._begin(stream) + block * _STEP) % UNIT
        floors = [(u + end) // UNIT for end in self._ends]
        return [b - a for a, b in pairwise(floors)]

    def _before(self, stream: int, block: int) -> list[int]:
        """Samples of each source in all blocks of a stream before `block`."""
        begin = self._begin(stream)
        # u_n + E = begin + n STEP + E less the whole part of begin + n STEP, which cancels
        sums = [floor_sum(block, UNIT, _STEP, begin + end) for end in self._ends]
        return [b - a for a, b in pairwise(sums)]

    def _sources(self, stream: int, block: int) -> Indices:
        """[W] number of the source of each sample of a block."""
        counts = self._counts(stream, block)
        words = ("mixture", self.seed, self.epoch, self.name, stream, block)
        return np.repeat(np.arange(len(counts)), counts)[permutation(self.window, *words)]

    def block(self, stream: int, position: int) -> tuple[Picks, int]:
        """Return the block that holds a stream's `position`, in order, and the offset in it."""
        number, offset = divmod(position, self.window)
        sources, before = self._sources(stream, number), self._before(stream, number)
        index, shard, place = np.empty((3, self.window), np.int64)
        for k, part in enumerate(self.parts):
            rows = np.flatnonzero(sources == k)
            picks = picks_between(part.plan, stream, before[k], before[k] + len(rows))
            index[rows] = picks.index + part.index
            shard[rows] = picks.shard + part.shard
            place[rows] = picks.position
        return Picks(index, shard, place), offset

    def drawn(self, positions: int) -> list[int]:
        """Return how many samples of each source the first `positions` of all streams hold."""
        number, offset = divmod(positions, self.window)
        totals = np.zeros(len(self.parts), np.int64)
        for stream in range(self.streams):
            totals += self._before(stream, number)
            if offset:
                rest = self._sources(stream, number)[:offset]
                totals += np.bincount(rest, minlength=len(self.parts))
        return [int(total) for total in totals]
