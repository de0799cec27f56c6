"""Checks of nearest_triton, run by test_nearest_triton in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from outmodal.models.kernels import common_triton, nearest_triton
from outmodal.models.kernels.nearest import nearest
from outmodal.models.kernels.nearest_tiled import Problem

torch.set_num_threads(1)


def data(n: int, m: int, d: int, k: int, far: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """Rows [n, d] and k times columns [m, d], `far` away from the origin."""
    g = torch.Generator().manual_seed(n + m + d + k)
    return torch.randn(n, d, generator=g) + far, [
        torch.randn(m, d, generator=g) + far for _ in range(k)
    ]


def distances(z: Tensor, v: list[Tensor]) -> Tensor:
    """[N, M] fp64."""
    return torch.stack([torch.cdist(z.double(), x.double()) for x in v]).mean(0)


CASES = {
    "plain": data(70, 150, 60, 3),
    "one modality": data(65, 64, 37, 1),
    "far away": data(30, 130, 16, 2, far=50.0),
    "one of each": data(1, 1, 8, 2),
    "fewer columns than kept": data(9, 3, 8, 2),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, list[Tensor]]:
    return CASES[request.param]


def test_bounds_hold_and_leave_nothing_nearer_out(case: tuple[Tensor, list[Tensor]]) -> None:
    z, v = case
    exact = distances(z, v)
    keep = 4
    bound, column = nearest_triton.candidates(Problem.of(z, v, None), z, keep)
    found = column >= 0
    assert (found.sum(1) == min(keep, exact.shape[1])).all()
    assert torch.isinf(bound[~found]).all()
    assert (bound.diff(dim=1)[found[:, 1:]] >= 0).all()
    its = exact.gather(1, column.clamp(min=0))
    assert (bound.double() <= its * (1 + 1e-6))[found].all()
    # Tight: a fifth of a per cent of the lengths involved.
    reach = max(float((x - torch.stack(v).mean((0, 1))).norm(dim=1).max()) for x in (z, *v))
    assert (its - bound.double())[found].max() < 6e-3 * reach
    # What is left out is no nearer than the last that is kept.
    rest = exact.scatter(1, column.clamp(min=0), torch.inf)
    if exact.shape[1] > keep:
        assert (rest.amin(1) >= bound[:, -1].double() * (1 - 1e-6)).all()


@pytest.mark.parametrize("k", [1, 3])
def test_nearest_is_exact(case: tuple[Tensor, list[Tensor]], k: int) -> None:
    z, v = case
    distance, index = nearest(z, v, k=k, impl="triton")
    k = min(k, len(v[0]))
    best = distances(z, v).topk(k, dim=1, largest=False)
    assert torch.equal(index[:, :k], best.indices)
    assert torch.allclose(distance[:, :k], best.values.float())


def test_ties_go_to_the_lowest_index() -> None:
    z, v = CASES["plain"]
    doubled = [torch.cat([x, x]) for x in v]
    _, index = nearest(z, doubled, impl="triton")
    assert torch.equal(index[:, 0], distances(z, v).argmin(1))


def test_chunks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    z, v = CASES["plain"]
    whole = nearest_triton.candidates(Problem.of(z, v, None), z, 4)
    monkeypatch.setattr(common_triton, "CHUNK_ROWS", 64)
    parts = nearest_triton.candidates(Problem.of(z, v, None), z, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
