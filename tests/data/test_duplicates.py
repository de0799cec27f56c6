"""Members of equal bytes."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from outmodal.data.duplicates import find_duplicates

NAMES = ("train", "valid", "test")


def hashes(numbers: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.array([[number, *range(15)] for number in numbers], np.uint8).reshape(-1, 16)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=40))
def test_counts_are_those_of_sets(members: list[tuple[int, int]]) -> None:
    numbers, splits = [m[0] for m in members], np.array([m[1] for m in members], np.int64)
    found = find_duplicates(hashes(numbers), splits, NAMES)
    held = [Counter(n for n, s in members if s == split) for split in range(3)]
    assert found["distinct"] == len(set(numbers))
    extra = {name: sum(held[n].values()) - len(held[n]) for n, name in enumerate(NAMES)}
    assert found["extra"] == {name: count for name, count in extra.items() if count}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        both = held[a].keys() & held[b].keys()
        shared = found["shared"].get(f"{NAMES[a]}/{NAMES[b]}")
        assert (shared is None) == (not both)
        if shared is not None:
            assert shared == {
                "contents": len(both),
                NAMES[a]: sum(held[a][n] for n in both),
                NAMES[b]: sum(held[b][n] for n in both),
            }
    for group in found["examples"]:
        assert len(group) > 1
        assert len({numbers[row] for row in group}) == 1


def test_leakage_comes_first_among_the_examples() -> None:
    found = find_duplicates(hashes([1, 1, 2, 3, 3, 2]), np.array([0, 0, 0, 0, 0, 2]), NAMES)
    assert found["examples"] == [[2, 5], [0, 1], [3, 4]]
