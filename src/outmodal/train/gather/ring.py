"""Blocks of columns that travel around the ranks, so that no rank ever holds all of them.

Rank r meets the blocks of ranks r, r-1, r-2, ...: while it works on one, the next arrives from
rank r-1 and its own goes on to rank r+1. What is added to a block follows one step behind it:
each rank adds to zeros of its own, joins what the ranks before it have added when that has
arrived, and sends the sum on during its next step. After a full turn the sums are home.

    step      0        1        2                 (3 ranks; what rank 0 does)
    compute   own      of 2     of 1
    receive   of 2     of 1     -                 columns, before the computation
    receive   sums 2   sums 1   own sums          after it, for the next step

A rank holds two blocks of columns and three of sums, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outmodal.models.kernels.exchange import Visitor
from outmodal.train.gather.group import world
from outmodal.train.gather.meeting import RankExchange

_ALIGN = 128  # bytes: every tensor in a buffer begins where vector loads may
_COLUMNS, _SUMS = 1, 2  # tags, for backends that have them


class RingExchange(RankExchange):
    """Columns travel from rank to rank with their sums: memory is flat in the number of ranks."""

    @torch.no_grad()
    def visit(
        self, columns: Sequence[Tensor], carried: Sequence[Tensor], fn: Visitor
    ) -> list[Tensor]:
        """One call with the columns of each rank, this one's first. Collective."""
        counts = self.counts(columns[0].shape[0])
        rank, most = world().rank, max(counts)
        col, add = _Layout(columns, most), _Layout(carried, most)
        held, ahead = col.buffer(), col.buffer()
        arriving, sums, sent = add.buffer(), add.buffer(), add.buffer()
        for layout, buffer, tensors in ((col, held, columns), (add, arriving, carried)):
            for view, t in zip(layout.views(buffer, counts[rank]), tensors, strict=True):
                view.copy_(t)
        following: list[Any] = []
        for step in range(self.size):
            block = (rank - step) % self.size
            n, partner = counts[block], sum(counts[:rank]) - sum(counts[:block])
            moving = _pass_on(held, ahead, _COLUMNS) if step + 1 < self.size else []
            sums.zero_()
            fn(col.views(held, n), add.views(sums, n), partner)
            _wait(following)
            for total, before in zip(add.views(sums, n), add.views(arriving, n), strict=True):
                total += before
            sums, sent = sent, sums
            following = _pass_on(sent, arriving, _SUMS)
            _wait(moving)
            held, ahead = ahead, held
        _wait(following)
        return add.views(arriving, counts[rank])


class _Layout:
    """Tensors with `rows` rows at most, laid end to end in one buffer of bytes: one message."""

    def __init__(self, tensors: Sequence[Tensor], rows: int) -> None:
        self._like, self._device = [(t.shape[1:], t.dtype) for t in tensors], world().device
        self._offsets, self._bytes = [], 0
        for t in tensors:
            self._offsets.append(self._bytes)
            size = rows * t.shape[1:].numel() * t.element_size()
            self._bytes += -(-size // _ALIGN) * _ALIGN

    def buffer(self) -> Tensor:
        """Uninitialised bytes for a block."""
        return torch.empty(self._bytes, dtype=torch.uint8, device=self._device)

    def views(self, buffer: Tensor, rows: int) -> list[Tensor]:
        """The tensors [rows, ...] in a buffer."""
        out = []
        for (shape, dtype), offset in zip(self._like, self._offsets, strict=True):
            size = rows * shape.numel() * dtype.itemsize
            out.append(buffer[offset : offset + size].view(dtype).view(rows, *shape))
        return out


def _pass_on(held: Tensor, into: Tensor, tag: int) -> list[Any]:
    """Start to send to the next rank and to receive from the one before; what to wait for."""
    if not held.numel():
        return []
    w = world()
    after, before = (w.rank + 1) % w.size, (w.rank - 1) % w.size
    return dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, held, after, tag=tag),
            dist.P2POp(dist.irecv, into, before, tag=tag),
        ]
    )


def _wait(works: Sequence[Any]) -> None:
    for work in works:
        work.wait()
