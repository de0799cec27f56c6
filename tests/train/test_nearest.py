"""The search over ranks equals brute force for any tile, block and number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from outmodal.errors import UserError
from outmodal.train import nearest as module
from outmodal.train.nearest import nearest_over_ranks
from tests.train.forked import ForkServer
from tests.train.nearest_job import searches


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 30),
    known=st.integers(1, 3),
    tile=st.tuples(st.integers(1, 25), st.integers(1, 40)),
    block=st.integers(1, 40),
    rms=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_tile_and_block_equal_brute_force(
    rows: int,
    columns: int,
    known: int,
    tile: tuple[int, int],
    block: int,
    rms: bool,
    seed: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 5, generator=g)
    v = [torch.randn(columns, 5, generator=g) for _ in range(known)]
    norms = torch.stack([(z[:, None].double() - part[None].double()).norm(dim=2) for part in v])
    gaps = norms.square().mean(0).sqrt() if rms else norms.mean(0)
    distance, index = nearest_over_ranks(
        z, v, aggregate="rms" if rms else "mean_norm", tile=tile, block=block
    )
    assert torch.equal(index, gaps.argmin(dim=1))
    assert torch.allclose(distance.double(), gaps.min(dim=1).values, atol=1e-6)


def test_equal_columns_go_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 2)
    z, v = torch.randn(5, 3), torch.randn(4, 3).repeat(3, 1)
    _, index = nearest_over_ranks(z, [v], block=5)
    assert int(index.max()) < 4


def test_the_mean_of_distances_is_not_the_distance_of_the_concatenation() -> None:
    z, v = torch.zeros(1, 1), [torch.tensor([[0.0], [1.4]]), torch.tensor([[2.6], [1.4]])]
    assert nearest_over_ranks(z, v)[1].item() == 0
    assert nearest_over_ranks(z, v, aggregate="rms")[1].item() == 1


def test_features_that_are_not_finite_are_named() -> None:
    with pytest.raises(UserError, match="'text' has NaN"):
        nearest_over_ranks(torch.ones(2, 3), [torch.full((4, 3), torch.nan)], names=("text",))


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_finds_the_same(server: ForkServer, tmp_path: Path, ranks: int) -> None:
    out = tmp_path / "found.safetensors"
    job = {"call": "tests.train.nearest_job:main", "out": str(out)}
    server.run(job, ranks, tmp_path / "log")
    together, alone = load_file(out), searches()
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(value, together[key]), key
