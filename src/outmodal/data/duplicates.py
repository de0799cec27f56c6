"""Members of equal bytes: within a split, and where a test split shares them with a train split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXAMPLES = 5
"""Groups of equal members that are named."""


def find_duplicates(
    digests: NDArray[np.uint8], split: NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    """Group members by their content hash.

    Args:
        digests: [N, 16] hashes.
        split: [N] number of the split of each.
        names: Names of the splits.

    Returns:
        distinct: Different contents.
        extra: Split -> members that repeat an earlier one of the same split.
        shared: "A/B" -> {"contents": contents in both, A: members of A with such a content, B: of
            B}, for each two splits that share any.
        examples: For each of the first groups [row, row, ...] of up to three members, those that
            two splits share first.
    """
    if not len(digests):
        return {"distinct": 0, "extra": {}, "shared": {}, "examples": []}
    keys = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}").ravel()
    _, group = np.unique(keys, return_inverse=True)
    group = group.ravel()
    count = int(group.max()) + 1
    held = np.zeros((len(names), count), np.int64)  # [splits, groups] members
    np.add.at(held, (split, group), 1)
    extra = {name: int((held[n] - (held[n] > 0)).sum()) for n, name in enumerate(names)}
    shared = {}
    for a, b in combinations(range(len(names)), 2):
        both = (held[a] > 0) & (held[b] > 0)
        if both.any():
            shared[f"{names[a]}/{names[b]}"] = {
                "contents": int(both.sum()),
                names[a]: int(held[a][both].sum()),
                names[b]: int(held[b][both].sum()),
            }
    return {
        "distinct": count,
        "extra": {name: n for name, n in extra.items() if n},
        "shared": shared,
        "examples": _examples(group, held),
    }


def _examples(group: NDArray[np.int64], held: NDArray[np.int64]) -> list[list[int]]:
    """Rows of the first groups with more than one member, those of several splits first."""
    first = np.full(held.shape[1], len(group), np.int64)
    np.minimum.at(first, group, np.arange(len(group)))
    repeated = np.flatnonzero(held.sum(0) > 1)
    order = np.lexsort((first[repeated], (held[:, repeated] > 0).sum(0) < 2))
    chosen = repeated[order][:EXAMPLES]
    return [_spread(np.flatnonzero(group == number)) for number in chosen]


def _spread(rows: NDArray[np.int64]) -> list[int]:
    """The first two rows and the last, which lies in another split if any does."""
    return [int(row) for row in dict.fromkeys((*rows[:2].tolist(), int(rows[-1])))]
