"""A few samples from all over a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outmodal.data.spread import even_positions, samples_at, spread_samples
from tests.data.tiny import make_tiny


@pytest.mark.parametrize(
    ("samples", "count", "positions"),
    [(10, 3, [0, 4, 9]), (3, 9, [0, 1, 2]), (5, 1, [0]), (5, 0, []), (0, 4, [])],
)
def test_positions_reach_from_end_to_end(samples: int, count: int, positions: list[int]) -> None:
    assert even_positions(samples, count).tolist() == positions


def test_samples_come_in_order_with_their_positions(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, modalities=("pose",))
    found = [(s.index, s.key, s.shard) for s in samples_at(dataset, "train", np.array([2, 9, 23]))]
    assert found == [
        (2, "train-00002", "train-000000.tar"),
        (9, "train-00009", "train-000001.tar"),
        (23, "train-00023", "train-000002.tar"),
    ]
    assert [s.index for s in spread_samples(dataset, "train", 2)] == [0, 23]
