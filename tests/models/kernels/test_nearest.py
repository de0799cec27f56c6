"""Nearest columns against all distances; the same for any tile, shard and order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.kernels import nearest as module
from outmodal.models.kernels.nearest import merge_nearest, nearest

torch.set_num_threads(1)


def points(
    n: int, m: int, d: int, count: int, seed: int = 0, shift: float = 0.0
) -> tuple[Tensor, list[Tensor]]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=g) + shift
    return z, [torch.randn(m, d, generator=g) + shift for _ in range(count)]


def brute(z: Tensor, v: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """By loops over columns, in fp64; equal fp32 distances in the order of the index."""
    columns = []
    for i in range(len(v[0])):
        columns.append(sum((z.double() - p[i].double()).square().sum(1).sqrt() for p in v) / len(v))
    distance = torch.stack(columns, 1).to(z.dtype)
    index = distance.argsort(dim=1, stable=True)[:, :k]
    return distance.gather(1, index), index


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_all_distances_for_any_tile(data: st.DataObject) -> None:
    draw = data.draw
    n, m, d = draw(st.integers(1, 20)), draw(st.integers(1, 150)), draw(st.integers(1, 40))
    count, k = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    z, v = points(n, m, d, count, draw(st.integers(0, 99)), draw(st.sampled_from([0.0, 30.0])))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if draw(st.booleans()):  # few different columns: ties, and more of them than are kept
        which = torch.randint(0, draw(st.integers(1, 9)), (m,), generator=g)
        v = [p[which.clamp(max=m - 1)] for p in v]
    if draw(st.booleans()):  # rows that are columns: distance 0
        z = v[0][torch.randint(0, m, (n,), generator=g)].clone()
    tile = draw(st.none() | st.tuples(st.integers(1, 30), st.integers(1, 200)))
    distance, index = nearest(z, v, k=k, tile=tile)
    wanted, where = brute(z, v, k)
    here = min(k, m)
    torch.testing.assert_close(distance[:, :here], wanted)
    assert torch.equal(distance[:, :here], nearest(z, v, k=k, impl="reference")[0][:, :here])
    assert torch.equal(index[:, :here], where)
    assert bool((index[:, here:] == -1).all())
    assert bool((distance[:, here:] == math.inf).all())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 99))
def test_parts_of_the_columns_merge_to_the_whole(sizes: list[int], k: int, seed: int) -> None:
    z, v = points(7, sum(sizes), 9, 2, seed)
    if sum(sizes):
        g = torch.Generator().manual_seed(seed)
        v = [p[torch.randint(0, sum(sizes), (sum(sizes),), generator=g)] for p in v]
    parts, first = [], 0
    for size in sizes:
        part = [p[first : first + size] for p in v]
        parts.append(nearest(z, part, k=k, offset=first))
        first += size
    whole = nearest(z, v, k=k)
    for order in (parts, parts[::-1]):
        distance, index = merge_nearest(order)
        assert torch.equal(distance, whole[0])
        assert torch.equal(index, whole[1])


def test_parts_of_the_rows_are_those_of_the_whole() -> None:
    z, v = points(50, 80, 24, 3)
    whole = nearest(z, v, k=2)
    parts = [nearest(z[i : i + 13], v, k=2) for i in range(0, 50, 13)]
    assert torch.equal(torch.cat([p[0] for p in parts]), whole[0])
    assert torch.equal(torch.cat([p[1] for p in parts]), whole[1])


def test_far_from_the_origin_nothing_cancels() -> None:
    z, v = points(40, 300, 64, 2, shift=100.0)
    torch.testing.assert_close(nearest(z, v)[1], brute(z, v, 1)[1])


def test_means_of_distances_are_not_those_of_squares() -> None:
    z = torch.zeros(1, 1)
    v = [torch.tensor([[0.0], [1.2]]), torch.tensor([[2.0], [1.2]])]
    assert nearest(z, v)[1].item() == 0  # mean 1.0 against 1.2; of squares 2.0 against 1.44


def test_fp64_is_exact() -> None:
    z, v = points(9, 33, 12, 2)
    z, v = z.double(), [p.double() for p in v]
    v[0][5], v[1][5] = v[0][4] + 1e-12, v[1][4]
    distance, index = nearest(z, v, k=4, tile=(4, 7))
    wanted, where = brute(z, v, 4)
    assert distance.dtype == torch.float64
    torch.testing.assert_close(distance, wanted, atol=1e-14, rtol=1e-14)
    assert torch.equal(index, where)


def test_half_precision_is_measured_as_it_is() -> None:
    z, v = points(9, 33, 12, 2)
    found = nearest(z.bfloat16(), [p.bfloat16() for p in v])
    wanted = nearest(z.bfloat16().float(), [p.bfloat16().float() for p in v])
    assert found[0].dtype == torch.float32
    assert torch.equal(found[1], wanted[1])


def test_products_in_less_than_fp32_change_nothing() -> None:
    z, v = points(60, 500, 96, 2)
    wanted = nearest(z, v, k=3)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = nearest(z, v, k=3)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


def test_few_pairs_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    plain = module.measure

    def counting(problem: object, rows: Tensor, columns: Tensor) -> Tensor:
        measured.append(len(rows))
        return plain(problem, rows, columns)

    monkeypatch.setattr(module, "measure", counting)
    z, v = points(500, 1000, 32, 2)
    nearest(z, v)
    assert sum(measured) < 520


def test_no_rows_and_no_columns() -> None:
    z, v = points(3, 5, 4, 2)
    assert nearest(z[:0], v)[0].shape == (0, 1)
    distance, index = nearest(z, [p[:0] for p in v], k=2)
    assert bool((distance == math.inf).all())
    assert bool((index == -1).all())


def test_errors_name_the_modality() -> None:
    z, v = points(3, 5, 4, 2)
    names = ("rgb", "speech")
    bad = v[1].clone()
    bad[2, 1] = torch.nan
    with pytest.raises(UserError, match=r"'speech' has NaN"):
        nearest(z, [v[0], bad], names=names)
    with pytest.raises(UserError, match=r"'rows' has NaN"):
        nearest(z * torch.inf, v, names=names)
    with pytest.raises(UserError, match=r"'speech' has shape \[4, 4\]"):
        nearest(z, [v[0], v[1][:4]], names=names)
    with pytest.raises(UserError, match="at least 1, got 0"):
        nearest(z, v, k=0)
    with pytest.raises(UserError, match="no modalities"):
        nearest(z, [])
    with pytest.raises(UserError, match="two positive numbers"):
        nearest(z, v, tile=(0, 5))


def test_names_are_one_for_each_modality() -> None:
    z = torch.zeros(2, 3)
    with pytest.raises(UserError, match=r"1 names \(depth\) for 2 modalities"):
        nearest(z, [z, z], names=("depth",))
