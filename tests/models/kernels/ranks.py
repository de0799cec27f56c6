"""Several ranks in one process, one thread each: an exchange to test kernels with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from outmodal.models.kernels.exchange import Visitor

T = TypeVar("T")


class Table:
    """Where ranks lay things for each other to see."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=120)
        self.places: list[Any] = [None] * size

    def swap(self, rank: int, value: Any) -> list[Any]:
        """Everybody's value, in rank order."""
        self.places[rank] = value
        self.barrier.wait()
        everything = list(self.places)
        self.barrier.wait()
        return everything


class Threaded:
    """Exchange of one rank: gathers all columns at once, or meets them one rank at a time.

    Every rank adds to sums of its own, which are added up at the end, as a collective does.
    """

    def __init__(self, table: Table, rank: int, ring: bool) -> None:
        self.table, self.rank, self.ring, self.size = table, rank, ring, table.size

    def visit(
        self, columns: Sequence[Tensor], carried: Sequence[Tensor], fn: Visitor
    ) -> list[Tensor]:
        ranks = self.table.swap(self.rank, [c.detach() for c in columns])
        counts = [len(of_rank[0]) for of_rank in ranks]
        starts = [sum(counts[:r]) for r in range(self.size)]
        whole = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
        added = [c.new_zeros(sum(counts), *c.shape[1:]) for c in carried]
        blocks = [slice(s, s + n) for s, n in zip(starts, counts, strict=True)]
        turns = blocks[self.rank :] + blocks[: self.rank] if self.ring else [slice(0, sum(counts))]
        for block in turns:
            partner = starts[self.rank] - block.start
            fn([t[block] for t in whole], [t[block] for t in added], partner)
        shares = self.table.swap(self.rank, added)
        own = blocks[self.rank]
        return [c + sum(s[i][own] for s in shares) for i, c in enumerate(carried)]

    def sum(self, t: Tensor) -> Tensor:
        return torch.stack(self.table.swap(self.rank, t.detach())).sum(0)

    def gather(self, t: Tensor) -> Tensor:
        out: Tensor = _Gather.apply(t, self)
        return out

    def offset(self, rows: int) -> int:
        return sum(self.table.swap(self.rank, rows)[: self.rank])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, exchange: Threaded) -> Tensor:
        ctx.exchange, ctx.rows = exchange, len(t)
        return torch.cat(exchange.table.swap(exchange.rank, t.detach()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = ctx.exchange.sum(grads[0])
        start = ctx.exchange.offset(ctx.rows)
        return total[start : start + ctx.rows], None


def on_ranks(size: int, work: Callable[[Threaded, int], T], ring: bool = False) -> list[T]:
    """Run `work(exchange, rank)` on every rank at once; results in rank order."""
    table, results, errors = Table(size), [None] * size, []

    def start(rank: int) -> None:
        try:
            results[rank] = work(Threaded(table, rank, ring), rank)  # type: ignore[call-overload]
        except Exception as e:  # noqa: BLE001 - raised again in the main thread
            errors.append(e)
            table.barrier.abort()

    threads = [threading.Thread(target=start, args=(rank,)) for rank in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        real = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
        raise (real or errors)[0]
    return results  # type: ignore[return-value]
