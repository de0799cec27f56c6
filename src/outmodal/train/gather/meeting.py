"""What all exchanges over ranks share: row counts, sums, and the gather of uneven rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outmodal.models.kernels.exchange import Visitor
from outmodal.train.gather.group import world
from outmodal.train.gather.rows import all_gather_flat, reduce_scatter


class RankExchange(ABC):
    """`models.kernels.exchange.Exchange` over the ranks of the process group.

    Args:
        even: All ranks hold equally many rows, as they do for training batches. Otherwise every
            call agrees on the counts first: a small collective, and a wait for the device.

    Attributes:
        size: Number of ranks.
    """

    def __init__(self, even: bool = False) -> None:
        self.size = world().size
        self._even = even

    @abstractmethod
    def visit(
        self, columns: Sequence[Tensor], carried: Sequence[Tensor], fn: Visitor
    ) -> list[Tensor]:
        """See `Exchange.visit`."""

    def sum(self, t: Tensor) -> Tensor:
        """Sum over ranks, detached and equal on all of them. Collective."""
        total = t.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    def gather(self, t: Tensor) -> Tensor:
        """Rows of all ranks [sum of n, ...] in rank order, with gradient. Collective."""
        out: Tensor = _GatherRows.apply(t, self.counts(t.shape[0]))  # type: ignore[no-untyped-call]
        return out

    def offset(self, rows: int) -> int:
        """Rows of the ranks before this one. Collective, unless all ranks hold equally many."""
        return sum(self.counts(rows)[: world().rank])

    def counts(self, rows: int) -> list[int]:
        """Rows of each rank, in rank order."""
        if self._even:
            return [rows] * self.size
        own = torch.tensor([rows], dtype=torch.int64, device=world().device)
        return [int(n) for n in all_gather_flat(own).flatten().tolist()]


class _GatherRows(torch.autograd.Function):
    """Concatenation of uneven rows; its backward is the reduce-scatter of the sum."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return gather_rows(t, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return scatter_sum(grads[0], ctx.counts), None


def gather_rows(t: Tensor, counts: Sequence[int]) -> Tensor:
    """[n, ...] of ranks with these counts -> [sum of counts, ...] in rank order, detached."""
    if t.dtype is torch.bool:
        return gather_rows(t.to(torch.uint8), counts).bool()
    most = max(counts)
    parts = all_gather_flat(_padded(t.detach(), most))
    if min(counts) == most:
        return parts.flatten(0, 1)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def scatter_sum(t: Tensor, counts: Sequence[int]) -> Tensor:
    """[sum of counts, ...] on every rank -> the sum over ranks of this rank's rows [n, ...]."""
    most, mine = max(counts), counts[world().rank]
    if min(counts) != most:
        t = torch.cat([_padded(part, most) for part in torch.split(t, list(counts))])
    own = t.new_empty((most, *t.shape[1:]))
    if own.numel():
        reduce_scatter(own, t)
    return own[:mine]


def _padded(t: Tensor, rows: int) -> Tensor:
    if t.shape[0] == rows:
        return t
    return torch.cat([t, t.new_zeros((rows - t.shape[0], *t.shape[1:]))])
