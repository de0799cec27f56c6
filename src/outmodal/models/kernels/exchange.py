"""How the rows of one rank meet the columns of all ranks.

A kernel works on blocks: rows of this rank against some columns. Who brings the columns of other
ranks, and who takes back what was added for them, is the exchange's affair: kernels know neither
ranks nor collectives. LOCAL is the exchange of a single process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

Visitor = Callable[[Sequence[Tensor], Sequence[Tensor], int], None]
"""(block of columns, block of carried, partner): see Exchange.visit."""


class Exchange(Protocol):
    """What kernels need of a process group. Row counts may differ between ranks.

    Losses follow one convention: a rank's loss is `size * (sum over its own rows of w * l) / (sum
    over all ranks of w)`, so that the mean of gradients over ranks is the exact gradient of the
    weighted mean over the global batch.

    Attributes:
        size: Number of ranks.
    """

    size: int

    def visit(
        self, columns: Sequence[Tensor], carried: Sequence[Tensor], fn: Visitor
    ) -> list[Tensor]:
        """Call `fn` until this rank's rows have met the columns of all ranks. Collective.

        Nothing here is recorded for autograd: kernels call it in forward and in backward.

        Args:
            columns: This rank's columns, tensors [n, ...] with the column axis first; read only.
            carried: This rank's sums [n, ...], usually zeros; they may be overwritten.
            fn: Called with a block of columns (tensors [C, ...] in the order of `columns`), that
                block's carried sums (to which it adds in place) and `partner`: row r of this
                rank pairs with column r + partner of the block where that lies in the block,
                else its pair is in another block. `partner` may be negative.

        Returns:
            `carried` of this rank's columns plus what all ranks added to them.
        """
        ...

    def sum(self, t: Tensor) -> Tensor:
        """Sum over ranks, detached and equal on all of them. Collective."""
        ...

    def gather(self, t: Tensor) -> Tensor:
        """Rows of all ranks in rank order, with gradient: its backward sums over ranks."""
        ...

    def offset(self, rows: int) -> int:
        """Index of this rank's first row in what `gather` returns; `rows` is this rank's count."""
        ...


class Local:
    """The exchange of one process: a single visit, of its own columns."""

    size = 1

    def visit(
        self, columns: Sequence[Tensor], carried: Sequence[Tensor], fn: Visitor
    ) -> list[Tensor]:
        """One call with this process's own columns."""
        fn(columns, carried, 0)
        return list(carried)

    def sum(self, t: Tensor) -> Tensor:
        """The tensor itself, detached."""
        return t.detach()

    def gather(self, t: Tensor) -> Tensor:
        """The tensor itself."""
        return t

    def offset(self, rows: int) -> int:
        """Always 0."""
        return 0


LOCAL: Exchange = Local()
