"""Rows that ranks share: whole pieces, every row once, in order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outmodal.train import shares
from outmodal.train.gather import World


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 6))
def test_every_row_once_in_whole_pieces(count: int, piece: int, size: int) -> None:
    parts = []
    for rank in range(size):
        with pytest.MonkeyPatch.context() as patch:
            world = World(rank, size, rank, torch.device("cpu"))
            patch.setattr(shares.gather, "world", lambda world=world: world)
            parts.append(shares.own_rows(count, piece))
            shared = shares.shared(count, piece)
    if not shared:
        assert all(part == range(count) for part in parts)
        return
    assert [i for part in parts for i in part] == list(range(count))
    assert all(part.start % piece == 0 for part in parts)
    assert all(len(part) > 0 for part in parts)


def test_alone_everything_is_ones_own() -> None:
    made = shares.by_rows(7, 3, lambda rows: [torch.tensor(list(rows))])
    assert made[0].tolist() == list(range(7))
    assert shares.in_turn([3, 4], lambda x: x * x) == [9, 16]
