"""The softmax form of `nce` as one autograd function over the primitives and the exchange.

Forward meets all columns once and carries their sums along; backward meets them again, with the
coefficients of the columns' own losses beside them, and carries their gradient along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from outmodal.models.kernels.checks import row_dots
from outmodal.models.kernels.exchange import Exchange
from outmodal.models.kernels.nce_exact import exact_grads, exact_lse, smallest_sum
from outmodal.models.kernels.nce_tiled import softplus

HEADROOM = 70.0
"""The largest exponent: sums over 2^26 columns of exp(70) still are finite in fp32."""


@dataclass(frozen=True)
class Softmax:
    """What does not change between forward and backward.

    Attributes:
        primitives: Module with `sums` and `grads`.
        both, exclude_positive, smoothing, exchange: As in `nce`.
        may_underflow: False where the scale is known to be too small for a row's sum to vanish,
            so that nobody has to look.
    """

    primitives: Any
    both: bool
    exclude_positive: bool
    smoothing: float
    exchange: Exchange
    may_underflow: bool


class Lost(NamedTuple):
    """Rows (or columns) that underflowed: which [m], and their exact log-sum-exp [m]."""

    which: Tensor
    lse: Tensor


class Side(NamedTuple):
    """What the losses of one direction and their gradient need of its sums, each [n].

    Attributes:
        losses: One for each row.
        slope: Derivative of the loss by the row's log-sum-exp, times the row's weight.
        coef: `slope` over the sum of exponentials; 0 for lost rows.
        const: Gradient of every negative logit by smoothing, or None.
        diag: Gradient of the positive logit.
    """

    losses: Tensor
    slope: Tensor
    coef: Tensor
    const: Tensor | None
    diag: Tensor


class SoftmaxLoss(torch.autograd.Function):
    """(q, k, scale, positives, weights, present, how) -> scalar loss."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        scale: Tensor,
        positives: Tensor | None,
        weights: Tensor,
        present: Tensor | None,
        how: Softmax,
    ) -> Tensor:
        shift = (scale - HEADROOM).clamp(min=0)
        positive = scale * row_dots(q, k if positives is None else positives)
        row, col = _all_sums(q, k, scale, shift, present, how)
        share, live, lost_row, lost_col = _agree(row[0], col[0], weights, present, how)
        share = share.to(weights.dtype) * (0.5 if how.both else 1.0)
        rows = _find_lost(lost_row, q, k, scale, present, how)
        one = _side(row, rows, positive, shift, live, weights * share, how)
        loss, diag, two, columns = one.losses, one.diag, None, None
        if how.both:
            columns = _find_lost(lost_col, k, q, scale, present, how)
            two = _side(col, columns, positive, shift, live, weights * share, how)
            loss, diag = loss + two.losses, diag + two.diag
        ctx.how = how
        ctx.save_for_backward(
            q,
            k,
            scale,
            shift,
            positives,
            present,
            diag,
            *_packed(one, rows),
            *_packed(two, columns),
        )  # fmt: skip
        return (loss * weights).sum() * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, scale, shift, positives, present, diag, *packed = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            diag = diag * grad
            one, two = _unpacked(packed[:5], grad), _unpacked(packed[5:], grad)
            on_partner = diag if positives is None else torch.zeros_like(diag)
            dq, dk = _all_grads(q, k, scale, shift, present, on_partner, one, two, ctx.how)
            d_positives = None
            if positives is not None:
                pull = (scale * diag)[:, None]
                dq.addcmul_(pull, positives)
                d_positives = (pull * q).to(positives.dtype)
            d_scale = row_dots(dq, q).sum() / scale if ctx.needs_input_grad[2] else None
            return dq.to(q.dtype), dk.to(k.dtype), d_scale, d_positives, None, None, None


# --- sums ------------------------------------------------------------------------------------


def _all_sums(
    q: Tensor, k: Tensor, scale: Tensor, shift: Tensor, present: Tensor | None, how: Softmax
) -> tuple[list[Tensor], list[Tensor]]:
    """Sums of this rank's rows and of its columns over all ranks: exponentials, then logits where
    there is smoothing."""
    totals = bool(how.smoothing)
    row = [scale.new_zeros(len(q)) for _ in range(1 + totals)]
    col = [torch.zeros_like(t) for t in row]

    def add(block: Sequence[Tensor], carried: Sequence[Tensor], partner: int) -> None:
        live = block[1] if present is not None else None
        part = how.primitives.sums(q, block[0], scale, shift, partner, present, live, totals)
        for sums, new in zip(row, (part.row, part.row_total), strict=False):
            sums.add_(new)
        for sums, new in zip(carried, (part.col, part.col_total), strict=False):
            sums.add_(new)

    columns = [k] if present is None else [k, present]
    summed = how.exchange.visit(columns, col if how.both else [], add)
    return row, summed if how.both else col


def _agree(
    row: Tensor, col: Tensor, weights: Tensor, present: Tensor | None, how: Softmax
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Over ranks: size / (sum of weights), or 0; live columns; which rows and columns to redo.

    The last two are None where no rank has any, so that all ranks agree on whether to redo.
    """
    bad_row, bad_col = row < smallest_sum(row.dtype), col < smallest_sum(col.dtype)
    if present is not None:
        bad_row, bad_col = bad_row & present, bad_col & present
    mine = [
        weights.sum(dtype=torch.float64),
        weights.new_full((), len(weights)) if present is None else present.sum(),
        bad_row.any(),
        bad_col.any(),
    ]
    total, live, any_row, any_col = how.exchange.sum(torch.stack([t.double() for t in mine]))
    share = torch.where(total > 0, how.exchange.size / total, torch.zeros_like(total))
    if not how.may_underflow:
        return share, live, None, None
    redo_row, redo_col = torch.stack([any_row, any_col]).tolist()  # waits for the device
    redo = bool(redo_row), bool(redo_col) and how.both
    return share, live, bad_row if redo[0] else None, bad_col if redo[1] else None


def _find_lost(
    bad: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    present: Tensor | None,
    how: Softmax,
) -> Lost | None:
    if bad is None:
        return None
    index = bad.nonzero()[:, 0]
    return Lost(index, exact_lse(rows, columns, scale, index, present, how.exchange))


# --- losses ----------------------------------------------------------------------------------


def _side(
    sums: list[Tensor],
    lost: Lost | None,
    positive: Tensor,
    shift: Tensor,
    live: Tensor,
    weights: Tensor,
    how: Softmax,
) -> Side:
    """Losses of one direction and what their gradient needs."""
    lse = shift + sums[0].log()
    if lost is not None:
        lse = lse.index_copy(0, lost.which, lost.lse)
    has = lse != -torch.inf  # NaN stays NaN: a loss of 0 would hide it
    none = torch.zeros_like(lse)
    x = torch.where(has, lse - positive, none)
    losses = torch.where(has, x if how.exclude_positive else softplus(x), none)
    slope = torch.where(has, weights if how.exclude_positive else weights * x.sigmoid(), none)
    coef = torch.where(has, slope / sums[0], none)
    if lost is not None:
        coef = coef.index_fill(0, lost.which, 0.0)
    diag, const = -slope, None
    if how.smoothing:
        count = live.to(lse.dtype).clamp(min=1)
        spread = how.smoothing * (positive - (sums[1] + positive) / count)
        losses = torch.where(has, losses + spread, none)
        const = -how.smoothing * weights / count
        diag = diag + how.smoothing * weights * (1 - 1 / count)
    return Side(losses, slope, coef, const, diag)


def _packed(side: Side | None, lost: Lost | None) -> tuple[Tensor | None, ...]:
    """A side for `save_for_backward`: coef, const, and index, lse and slope of lost rows."""
    if side is None:
        return (None,) * 5
    if lost is None:
        return side.coef, side.const, None, None, None
    return side.coef, side.const, lost.which, lost.lse, side.slope[lost.which]


def _unpacked(packed: Sequence[Tensor | None], grad: Tensor) -> list[Tensor | None]:
    """The same with everything that is linear in the upstream gradient multiplied by it."""
    coef, const, index, lse, slope = packed
    return [None if t is None else t * grad for t in (coef, const, slope)] + [index, lse]


# --- gradients -------------------------------------------------------------------------------


def _all_grads(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    shift: Tensor,
    present: Tensor | None,
    diag: Tensor,
    one: list[Tensor | None],
    two: list[Tensor | None],
    how: Softmax,
) -> tuple[Tensor, Tensor]:
    """Gradients of this rank's rows and columns from the losses of all ranks, in fp32."""
    beside = [t for t in (present, *two[:2]) if t is not None]
    dq: list[Tensor] = []

    def add(block: Sequence[Tensor], carried: Sequence[Tensor], partner: int) -> None:
        rest = iter(block[1:])
        live, coef, const = (None if t is None else next(rest) for t in (present, *two[:2]))
        d_rows, d_columns = how.primitives.grads(
            q, block[0], scale, shift, partner, present, live,
            one[0], coef, one[1], const, diag,
        )  # fmt: skip
        carried[0].add_(d_columns)
        dq[:] = [dq[0].add_(d_rows) if dq else d_rows]

    start = torch.zeros_like(k, dtype=scale.dtype)
    (dk,) = how.exchange.visit([k, *beside], [start], add)
    _redo(q, k, dq[0], dk, scale, present, one, how)
    _redo(k, q, dk, dq[0], scale, present, two, how)
    return dq[0], dk


def _redo(
    rows: Tensor,
    columns: Tensor,
    d_rows: Tensor,
    d_columns: Tensor,
    scale: Tensor,
    present: Tensor | None,
    side: list[Tensor | None],
    how: Softmax,
) -> None:
    """Add the gradients of a side's lost rows, in place."""
    slope, index, lse = side[2:]
    if slope is None or index is None or lse is None:
        return
    of_rows, of_columns = exact_grads(
        rows, columns, scale, index, lse, slope, present, how.exchange
    )
    d_rows.index_add_(0, index, of_rows)
    d_columns.add_(of_columns)
