"""How the columns of all ranks come to one rank's rows: gathered at once, or around a ring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from outmodal.models.kernels.exchange import LOCAL, Exchange, Visitor
from outmodal.train.gather.group import world
from outmodal.train.gather.meeting import RankExchange, gather_rows, scatter_sum
from outmodal.train.gather.ring import RingExchange

ExchangeKind = Literal["auto", "gather", "ring"]
BUDGET = 4 * 2**30  # bytes on a rank that gathered columns and their sums may take


class GatherExchange(RankExchange):
    """Columns of all ranks in one block; what was added to them returns by reduce-scatter.

    Two collectives a tensor, and the fastest where the block fits: memory grows with the ranks.
    Nothing is kept between visits, so a backward pass gathers again rather than hold the columns
    while the encoders' gradients are computed.
    """

    def visit(
        self, columns: Sequence[Tensor], carried: Sequence[Tensor], fn: Visitor
    ) -> list[Tensor]:
        """One call with the columns of all ranks. Collective."""
        return visit_gathered(columns, carried, fn, self.counts(columns[0].shape[0]))


class AutoExchange(RankExchange):
    """Gathers while the columns of all ranks and their sums fit into a budget, else a ring.

    Args:
        budget: Bytes that the gathered block may take on each rank.
        even: See `RankExchange`.
    """

    def __init__(self, budget: int = BUDGET, even: bool = False) -> None:
        super().__init__(even)
        self._budget = budget
        self._ring = RingExchange(even)

    def visit(
        self, columns: Sequence[Tensor], carried: Sequence[Tensor], fn: Visitor
    ) -> list[Tensor]:
        """See the class. All ranks choose alike, from the counts. Collective."""
        counts = self.counts(columns[0].shape[0])
        row = sum(t.element_size() * t.shape[1:].numel() for t in (*columns, *carried))
        if row * sum(counts) > self._budget:
            return self._ring.visit(columns, carried, fn)
        return visit_gathered(columns, carried, fn, counts)


@torch.no_grad()
def visit_gathered(
    columns: Sequence[Tensor], carried: Sequence[Tensor], fn: Visitor, counts: Sequence[int]
) -> list[Tensor]:
    """`GatherExchange.visit` for ranks that hold these row counts."""
    total = sum(counts)
    block = [gather_rows(t, counts) for t in columns]
    sums = [t.new_zeros((total, *t.shape[1:])) for t in carried]
    fn(block, sums, sum(counts[: world().rank]))
    del block
    return [t + scatter_sum(s, counts) for t, s in zip(carried, sums, strict=True)]


def exchange(kind: ExchangeKind = "auto", budget: int = BUDGET, even: bool = False) -> Exchange:
    """How this process's rows meet those of all ranks, for the kernels.

    Args:
        kind: gather (columns of all ranks at once), ring (block by block, in memory that does
            not grow with the ranks), or auto: gather while it stays within `budget`.
        budget: Bytes on a rank for auto.
        even: All ranks hold equally many rows, as for training batches: spares each visit a
            collective and a wait for the device.

    Returns:
        `LOCAL` for a single process.
    """
    if world().size == 1:
        return LOCAL
    if kind == "auto":
        return AutoExchange(budget, even)
    return GatherExchange(even) if kind == "gather" else RingExchange(even)
