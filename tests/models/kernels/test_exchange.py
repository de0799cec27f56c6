"""The exchange's promises: every pair is met once, sums come back, losses are of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.models.kernels.exchange import LOCAL, Exchange
from outmodal.models.kernels.nce import nce
from tests.models.kernels.ranks import on_ranks

ROWS = (5, 1, 8)
"""Of three ranks."""


def test_alone_there_is_one_visit_of_the_own_columns() -> None:
    columns, seen = torch.arange(3.0), []

    def add(block: Sequence[Tensor], carried: Sequence[Tensor], partner: int) -> None:
        seen.append((block[0].tolist(), partner))
        carried[0].add_(block[0])

    (back,) = LOCAL.visit([columns], [torch.ones(3)], add)
    assert seen == [([0.0, 1.0, 2.0], 0)]
    assert back.tolist() == [1.0, 2.0, 3.0]
    t = torch.ones(2, requires_grad=True)
    assert LOCAL.gather(t) is t
    assert not LOCAL.sum(t).requires_grad
    assert (LOCAL.size, LOCAL.offset(7)) == (1, 0)


@pytest.mark.parametrize("ring", [False, True])
def test_all_ranks_meet_all_columns_and_know_their_partners(ring: bool) -> None:
    def work(exchange: Exchange, rank: int) -> tuple[list[int], list[int], list[float]]:
        n = ROWS[rank]
        names = torch.arange(n) + exchange.offset(n)
        met, partners = [], [-1] * n

        def add(block: Sequence[Tensor], carried: Sequence[Tensor], partner: int) -> None:
            met.extend(block[0].tolist())
            carried[0].add_(n)
            for r in range(n):
                if 0 <= r + partner < len(block[0]):
                    partners[r] = int(block[0][r + partner])

        (sums,) = exchange.visit([names], [torch.zeros(n)], add)
        assert partners == names.tolist()
        return met, partners, sums.tolist()

    results = on_ranks(3, work, ring)
    assert [sorted(met) for met, _, _ in results] == [list(range(sum(ROWS)))] * 3
    for (_, _, sums), n in zip(results, ROWS, strict=True):
        assert sums == [float(sum(ROWS))] * n


Data = dict[str, Tensor]
CASES: dict[str, dict[str, Any]] = {
    "both": {},
    "rows": {"both": False},
    "dcl": {"exclude_positive": True, "smoothing": 0.1},
    "masked": {"present": True, "weights": True, "smoothing": 0.2},
    "positives": {"both": False, "positives": True},
    "sigmoid": {"form": "sigmoid", "bias": True, "present": True},
    "underflow": {"scale": 900.0},
    "masked-underflow": {"scale": 900.0, "present": True, "weights": True},
}


def _data(case: dict[str, Any]) -> Data:
    g = torch.Generator().manual_seed(3)
    n = sum(ROWS)
    draw = lambda: F.normalize(torch.randn(n, 7, generator=g, dtype=torch.float64), dim=1)  # noqa: E731
    data = {"q": draw(), "k": draw()}
    if case.get("positives"):
        data["positives"] = draw()
    if case.get("weights"):
        data["weights"] = torch.rand(n, generator=g, dtype=torch.float64)
    if case.get("present"):
        data["present"] = torch.rand(n, generator=g) > 0.3
        data["present"][5] = False  # all that the second rank has
    return data


def _loss_and_grads(data: Data, case: dict[str, Any], exchange: Exchange, impl: str) -> Data:
    leaves = {name: data[name].clone().requires_grad_() for name in ("q", "k")}
    if "positives" in data:
        leaves["positives"] = data["positives"].clone().requires_grad_()
    leaves["scale"] = torch.tensor(case.get("scale", 9.0), dtype=torch.float64, requires_grad=True)
    if case.get("bias"):
        leaves["bias"] = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    options = {
        k: v for k, v in case.items() if k in ("both", "exclude_positive", "smoothing", "form")
    }
    rest = {name: data[name] for name in ("weights", "present") if name in data}
    loss = nce(**leaves, **rest, **options, exchange=exchange, impl=impl)  # type: ignore[arg-type]
    loss.backward()
    grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"loss": loss.detach(), **grads}


def _split(data: Data) -> list[Data]:
    parts = {name: t.split(ROWS) for name, t in data.items()}
    return [{name: parts[name][rank] for name in parts} for rank in range(len(ROWS))]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("impl", ["tiled", "reference"])
@pytest.mark.parametrize("ring", [False, True], ids=["gathered", "ring"])
def test_uneven_ranks_give_the_loss_and_gradients_of_the_whole_batch(
    case: dict[str, Any], impl: str, ring: bool
) -> None:
    data = _data(case)
    parts = _split(data)
    work: Callable[[Exchange, int], Data] = lambda exchange, rank: _loss_and_grads(  # noqa: E731
        parts[rank], case, exchange, impl
    )
    ranks = on_ranks(3, work, ring)
    alone = _loss_and_grads(data, case, LOCAL, "reference")
    for name, expected in alone.items():
        each = [rank[name] for rank in ranks]
        # the wrapper takes the mean over ranks: of the loss, of parameters' gradients, and so of
        # what every rank's rows pass back
        whole = torch.stack(each).mean(0) if expected.dim() == 0 else torch.cat(each) / 3
        torch.testing.assert_close(whole, expected, atol=1e-9, rtol=1e-9)


def _refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as refused:
        work()
    return str(refused.value)


@pytest.mark.parametrize("bad", ["long", "nan", "weights"])
def test_what_one_rank_refuses_all_refuse(bad: str) -> None:
    """Else the others would wait in the next collective for one that is gone."""
    data = _data({"weights": True})
    if bad == "weights":
        data["weights"][-1] = -1.0
    else:
        data["k"][-1] = 3.0 if bad == "long" else torch.nan
    parts = _split(data)

    def work(exchange: Exchange, rank: int) -> str:
        mine = parts[rank]
        q, k, weights = mine["q"], mine["k"], mine["weights"]
        names = ("rgb", "speech")
        return _refusal(lambda: nce(q, k, 9.0, weights=weights, exchange=exchange, names=names))

    messages = on_ranks(3, work)
    assert all("'speech'" in m for m in messages)
    if bad != "weights":
        assert "normalize" in messages[2] or "NaN" in messages[2]
        assert all("1 embeddings of other ranks" in m for m in messages[:2])
