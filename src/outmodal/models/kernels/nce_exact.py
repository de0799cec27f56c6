"""Rows whose sums underflow under the static shift, done again with a shift of their own.

With unit vectors and a scale s, logits lie in [-s, s] and one shift max(s - 70, 0) serves all rows
as long as some negative of each is not much too far away. Where all negatives of a row lie beyond
that, its sum is lost in fp32; such rows are rare up to s = 100 and are redone here, exactly.
Columns are rows of the transposed problem.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outmodal.models.kernels.exchange import Exchange
from outmodal.models.kernels.nce_tiled import Tile, operands, tile_size, tiles


def smallest_sum(dtype: torch.dtype) -> float:
    """Sums below this may have lost terms that matter; a million denormal terms stay 1e-7 of it."""
    return 1e-280 if dtype is torch.float64 else 1e-25


def exact_lse(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    index: Tensor,
    present: Tensor | None,
    exchange: Exchange,
) -> Tensor:
    """[m] log-sum-exp of the logits of some rows over their negatives, -inf without any.

    Collective: every rank calls it, with an empty index where it has nothing to do.

    Args:
        rows, columns: [n, d] of this rank.
        scale: One element.
        index: [m] int64, the rows to do.
        present: [n] bool, or None where all rows are.
        exchange: Brings the columns of all ranks.
    """
    chosen, columns = operands(rows[index], columns)
    top = torch.full_like(chosen[:, 0], -torch.inf)
    total = torch.zeros_like(top)

    def add(block: Sequence[Tensor], carried: Sequence[Tensor], partner: int) -> None:
        for tile in tiles(len(chosen), len(block[0]), 0, tile_size(chosen)):
            logits = _negatives(chosen, block, scale, index + partner, tile)
            peak = torch.maximum(top[tile.i], logits.amax(1))
            safe = torch.where(torch.isfinite(peak), peak, torch.zeros_like(peak))
            total[tile.i] *= torch.exp(top[tile.i] - safe)
            total[tile.i] += logits.sub_(safe[:, None]).exp_().sum(1)
            top[tile.i] = peak

    exchange.visit(_with_mask(columns, present), [], add)
    return top + total.log()


def exact_grads(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    index: Tensor,
    lse: Tensor,
    slope: Tensor,
    present: Tensor | None,
    exchange: Exchange,
) -> tuple[Tensor, Tensor]:
    """Products with G[r, c] = slope[r] * exp(logit - lse[r]) over the negatives of some rows.

    Args:
        rows, columns, scale, index, present, exchange: As for `exact_lse`. Collective too.
        lse, slope: [m].

    Returns:
        scale * G columns [m, d], and scale * G^T rows [n, d] for this rank's columns.
    """
    chosen, columns = operands(rows[index], columns)
    has = lse != -torch.inf  # not a row without negatives; NaN stays NaN
    lse, slope = (torch.where(has, t, torch.zeros_like(t)) for t in (lse, slope))
    d_rows = torch.zeros_like(chosen)

    def add(block: Sequence[Tensor], carried: Sequence[Tensor], partner: int) -> None:
        for tile in tiles(len(chosen), len(block[0]), 0, tile_size(chosen)):
            g = _negatives(chosen, block, scale, index + partner, tile)
            g.sub_(lse[tile.i, None]).exp_().mul_(slope[tile.i, None])
            d_rows[tile.i].addmm_(g, block[0][tile.j])
            carried[0][tile.j].addmm_(g.t(), chosen[tile.i])

    (d_columns,) = exchange.visit(_with_mask(columns, present), [torch.zeros_like(columns)], add)
    return d_rows.mul_(scale), d_columns.mul_(scale)


def _with_mask(columns: Tensor, present: Tensor | None) -> list[Tensor]:
    return [columns] if present is None else [columns, present]


def _negatives(
    rows: Tensor, block: Sequence[Tensor], scale: Tensor, partner: Tensor, tile: Tile
) -> Tensor:
    """A tile of logits with -inf where the column is the row's partner or absent."""
    logits = torch.mm(rows[tile.i] * scale, block[0][tile.j].t())
    columns = torch.arange(tile.j.start, tile.j.stop, device=rows.device)
    out = partner[tile.i, None] == columns[None, :]
    if len(block) > 1:
        out |= ~block[1][None, tile.j]
    return logits.masked_fill_(out, -torch.inf)
