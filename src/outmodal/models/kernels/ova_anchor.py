"""Losses of one modality as the anchor against the groups of all samples, with their gradient.

Written once over the primitives `sums` and `grads` (tiled or Triton) and an Exchange. Sums run over
negatives only: with x = log-sum-exp of the negatives' logits minus the positive's, a loss is
softplus(x), which stays exact where the loss is close to 0, and its gradient p = sigmoid(x).

Bases are made anew in the backward pass, so that what is kept between forward and backward is the
embeddings and a few numbers a row, whatever the number of modalities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from outmodal.models.kernels.exchange import Exchange
from outmodal.models.kernels.nce_tiled import Sums
from outmodal.models.kernels.ova_basis import Groups, combine
from outmodal.models.kernels.ova_tiled import Form

# Scores lie in these ranges, up to rounding and the ridge. A triangle on the unit sphere has an
# area of at most 3 sqrt(3) / 4, and its score is twice the square.
RANGES: dict[Form, tuple[float, float]] = {
    "projection": (0.0, 1.0),
    "volume": (-1.0, 0.0),
    "area": (-3.375, 0.0),
}
# exp(TOP) times 2^26 rows does not overflow fp32.
TOP = 70.0
# A sum below this may have lost terms to underflow; one negative at exponent -59 exceeds it.
LOST = 1e-26
# A lost sum has no exponent above log(LOST): raised by this, none is above 50.
STEP = 110.0


class Primitives(Protocol):
    """ova_tiled or ova_triton, the modules."""

    sums: Any
    grads: Any


@dataclass(frozen=True)
class Level:
    """One pass over the entries. shift: subtracted from logits before exp.

    rows, cols: [n] bool, which rows' and columns' sums this pass is for; None: all. Passes after
    the first are for sums that were lost to underflow under the shifts before.
    """

    shift: Tensor
    rows: Tensor | None = None
    cols: Tensor | None = None


@dataclass
class Side:
    """The sums of rows or of columns: [n] sums of exp(logit - shift), shifts, sums of logits."""

    sum: Tensor
    shift: Tensor
    total: Tensor | None


@dataclass(frozen=True)
class Anchor:
    """One anchor's problem: options, masks, and the operations on its operands.

    Attributes:
        index: Which of the embeddings is the anchor.
        live: [n] bool, samples that take part; None: all.
        groups: How the others' vectors make groups.
        candidates: Number of live samples on all ranks, 0-d.
        certain: No sum can underflow (the scale is known and small): skip looking.
        half: Whether the primitives take half precision operands as they are.
    """

    index: int
    form: Form
    both: bool
    exclude_positive: bool
    smoothing: float
    live: Tensor | None
    groups: Groups
    candidates: Tensor
    certain: bool
    half: bool
    exchange: Exchange
    primitives: Primitives

    def split(self, embeddings: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The anchor's embeddings and the others'."""
        rest = [e for i, e in enumerate(embeddings) if i != self.index]
        return embeddings[self.index], rest

    def operands(self, embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """z [n, d], basis [n, M-1, d] in the type that the primitives take, gain [n] or None."""
        z, rest = self.split(embeddings)
        basis, gain = self.groups.basis(rest)
        return (z, basis.to(z.dtype), gain) if self.half else (z.to(basis.dtype), basis, gain)

    def first_shift(self, scale: Tensor) -> Tensor:
        """The middle of the logits' range, or as high as overflow demands."""
        low, high = RANGES[self.form]
        return torch.maximum(scale * ((low + high) / 2), scale * high - TOP)

    def mean(self, rows: Tensor, cols: Tensor | None) -> Tensor:
        """Losses of samples from those of their rows and columns."""
        return rows if cols is None else (rows + cols) / 2

    def losses(self, side: Side, positive: Tensor) -> Tensor:
        """[n] losses; 0 for samples that are not live or have no negative."""
        has = self.with_negatives(side)
        x = self.excess(side, positive)
        out = x if self.exclude_positive else -F.logsigmoid(-x)
        if side.total is not None:
            every = (positive + side.total) / self.candidates.clamp(min=1)
            out = out + self.smoothing * (positive - every)
        return torch.where(has, out, torch.zeros_like(out))

    def with_negatives(self, side: Side) -> Tensor:
        """[n] bool: live, with some other live sample."""
        has = (self.candidates > 1).expand(side.sum.shape)
        return has if self.live is None else has & self.live

    def excess(self, side: Side, positive: Tensor) -> Tensor:
        """[n] log-sum-exp of the negatives' logits minus the positive's."""
        return side.sum.log() + side.shift - positive


def lse_parts(
    anchor: Anchor, z: Tensor, basis: Tensor, gain: Tensor | None, scale: Tensor
) -> tuple[Side, Side | None, list[Level]]:
    """Sums of rows and, where asked for, columns, with the passes that they took. Collective."""
    levels = [Level(anchor.first_shift(scale))]
    rows, cols = _visit(anchor, z, basis, gain, scale, levels[0], anchor.smoothing > 0)
    while not anchor.certain:
        lost_rows = anchor.with_negatives(rows) & (rows.sum < LOST)
        lost_cols = None if cols is None else anchor.with_negatives(cols) & (cols.sum < LOST)
        count = lost_rows.sum() + (0 if lost_cols is None else lost_cols.sum())
        if not bool(anchor.exchange.sum(count) > 0):
            break
        shift = levels[-1].shift - STEP
        levels.append(Level(shift, rows=lost_rows))
        _replace(rows, _visit(anchor, z, basis, gain, scale, levels[-1], False)[0], lost_rows)
        if cols is not None and lost_cols is not None:
            levels.append(Level(shift, cols=lost_cols))
            again = _visit(anchor, z, basis, gain, scale, levels[-1], False)[1]
            assert again is not None
            _replace(cols, again, lost_cols)
    return rows, cols, levels


def _replace(side: Side, again: Side, which: Tensor) -> None:
    side.sum = torch.where(which, again.sum, side.sum)
    side.shift = torch.where(which, again.shift, side.shift)


def _visit(
    anchor: Anchor,
    z: Tensor,
    basis: Tensor,
    gain: Tensor | None,
    scale: Tensor,
    level: Level,
    totals: bool,
) -> tuple[Side, Side | None]:
    """One pass of sums over all columns."""
    row_live = anchor.live if level.rows is None else level.rows
    col_live = anchor.live if level.cols is None else level.cols
    zeros = torch.zeros(len(z), dtype=scale.dtype, device=z.device)
    row, row_total = zeros.clone(), zeros.clone()
    carried = [zeros.clone() for _ in range(1 + totals)] if anchor.both else []

    def add(block: Sequence[Tensor], into: Sequence[Tensor], partner: int) -> None:
        planes, gains, live = _unpack(block, gain is not None, col_live is not None)
        args = (z, planes, gains, scale, level.shift, partner, row_live, live, anchor.form, totals)
        found: Sums = anchor.primitives.sums(*args)
        row.add_(found.row)
        if found.row_total is not None:
            row_total.add_(found.row_total)
        for mine, theirs in zip(into, (found.col, found.col_total), strict=False):
            assert theirs is not None
            mine.add_(theirs)

    columns = [t for t in (basis, gain, col_live) if t is not None]
    done = anchor.exchange.visit(columns, carried, add)
    shift = level.shift.expand(len(z))
    rows = Side(row, shift, row_total if totals else None)
    if not anchor.both:
        return rows, None
    return rows, Side(done[0], shift, done[1] if totals else None)


def _unpack(
    block: Sequence[Tensor], has_gain: bool, has_live: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """basis [J, C, d], gain and live of a block of columns."""
    gain = block[1] if has_gain else None
    return block[0].transpose(0, 1), gain, block[1 + has_gain] if has_live else None


class AnchorLoss(torch.autograd.Function):
    """Sum over this rank's samples of the anchor's losses, by scale and embeddings."""

    @staticmethod
    def forward(ctx: Any, anchor: Anchor, scale: Tensor, *embeddings: Tensor) -> Tensor:
        z, basis, gain = anchor.operands(embeddings)
        positive = scale * combine(_pair_products(z, basis), gain, anchor.form)
        rows, cols, ctx.levels = lse_parts(anchor, z, basis, gain, scale)
        ctx.anchor, ctx.rows, ctx.cols, ctx.positive = anchor, rows, cols, positive
        ctx.save_for_backward(scale, *embeddings)
        by_col = None if cols is None else anchor.losses(cols, positive)
        return anchor.mean(anchor.losses(rows, positive), by_col).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        anchor: Anchor = ctx.anchor
        scale, *embeddings = ctx.saved_tensors
        with torch.autocast(scale.device.type, enabled=False):
            z, basis, gain = anchor.operands(embeddings)
            weight = upstream.to(scale.dtype) * (0.5 if anchor.both else 1.0)
            by_row = Slopes.of(anchor, ctx.rows, ctx.positive, weight)
            by_col = None if ctx.cols is None else Slopes.of(anchor, ctx.cols, ctx.positive, weight)
            # The area is no homogeneous function of products: its derivative by the scale needs
            # sums that a constant coordinate of the rows provides.
            padded = anchor.form == "area" and ctx.needs_input_grad[1]
            if padded:
                z, basis = F.pad(z, (0, 8), value=1.0), F.pad(basis, (0, 8))
            found = _gradients(anchor, ctx.levels, by_row, by_col, (z, basis, gain, scale))
            dscale = None
            if ctx.needs_input_grad[1]:
                dscale = _by_scale(anchor.form, found, z, basis, gain, scale)
            dz, dbasis, dgain = found
            if padded:
                dz, dbasis = dz[:, :-8], dbasis[:, :, :-8]
            _, rest = anchor.split(embeddings)
            by_rest = anchor.groups.basis_grads(rest, dbasis, dgain)
        by_embedding = [*by_rest[: anchor.index], dz, *by_rest[anchor.index :]]
        return None, dscale, *(g.to(e.dtype) for g, e in zip(by_embedding, embeddings, strict=True))


def _pair_products(z: Tensor, basis: Tensor) -> Tensor:
    """[n, J] products of every row with its own sample's basis."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    planes = [(z.to(dtype) * basis[:, j].to(dtype)).sum(1) for j in range(basis.shape[1])]
    return torch.stack(planes, dim=1)


@dataclass(frozen=True)
class Slopes:
    """Gradient by the logits of rows (or columns): exp(logit - shift) * coef + const off pairs.

    coef, shift, pair: [n]; const: [n] or None. pair is the gradient by the positive's logit.
    """

    coef: Tensor
    shift: Tensor
    const: Tensor | None
    pair: Tensor

    @classmethod
    def of(cls, anchor: Anchor, side: Side, positive: Tensor, weight: Tensor) -> Slopes:
        """Slopes of weight times the sum of the side's losses."""
        has = anchor.with_negatives(side)
        x = anchor.excess(side, positive)
        p = torch.ones_like(x) if anchor.exclude_positive else torch.sigmoid(x)
        p = torch.where(has, p * weight, torch.zeros_like(p))
        coef = torch.where(has, p / side.sum, torch.zeros_like(p))
        if side.total is None:
            return cls(coef, side.shift, None, -p)
        rate = torch.where(has, anchor.smoothing * weight, torch.zeros_like(p))
        each = rate / anchor.candidates.clamp(min=1)
        return cls(coef, side.shift, -each, rate - each - p)

    def at(self, level: Level, which: Tensor | None) -> Tensor:
        """coef of those whose sum was taken in this pass, 0 for others."""
        mine = self.shift == level.shift
        if which is not None:
            mine = mine & which
        return torch.where(mine, self.coef, torch.zeros_like(self.coef))


def _gradients(
    anchor: Anchor,
    levels: list[Level],
    by_row: Slopes,
    by_col: Slopes | None,
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dz [n, d], dbasis [n, J, d] and dgain [n] from all ranks. Collective."""
    z, basis, gain, scale = operands
    dz = torch.zeros(z.shape, dtype=scale.dtype, device=z.device)
    carried = [torch.zeros(basis.shape, dtype=scale.dtype, device=z.device)]
    if gain is not None:
        carried.append(torch.zeros_like(gain))
    for level in levels:
        carried = _visit_grads(
            anchor, level, level is levels[0], by_row, by_col, operands, dz, carried
        )
    return dz, carried[0], carried[1] if gain is not None else None


def _visit_grads(
    anchor: Anchor,
    level: Level,
    first: bool,
    by_row: Slopes,
    by_col: Slopes | None,
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor],
    dz: Tensor,
    carried: list[Tensor],
) -> list[Tensor]:
    """One pass of gradients over all columns; adds to dz and to what is carried."""
    z, basis, gain, scale = operands
    row_live = anchor.live if level.rows is None else level.rows
    col_live = anchor.live if level.cols is None else level.cols
    none = torch.zeros_like(by_row.coef)
    row_coef = none if level.cols is not None else by_row.at(level, level.rows)
    both = by_col is not None and level.rows is None
    col_coef = by_col.at(level, level.cols) if by_col is not None and both else None
    row_const = by_row.const if first else None
    col_const = by_col.const if first and by_col is not None else None
    pair = none if not first else by_row.pair if by_col is None else by_row.pair + by_col.pair
    present = [gain is not None, col_live is not None, col_coef is not None, col_const is not None]

    def add(block: Sequence[Tensor], into: Sequence[Tensor], partner: int) -> None:
        rest = iter(block[1:])
        gains, live, coef, const = (next(rest) if there else None for there in present)
        planes = block[0].transpose(0, 1)
        some = (z, planes, gains, scale, level.shift, partner, row_live, live, anchor.form)
        found = anchor.primitives.grads(*some, row_coef, coef, row_const, const, pair)
        dz.add_(found[0])
        into[0].add_(found[1].transpose(0, 1))
        if found[2] is not None:
            into[1].add_(found[2])

    columns = [t for t in (basis, gain, col_live, col_coef, col_const) if t is not None]
    return anchor.exchange.visit(columns, carried, add)


def _by_scale(
    form: Form,
    found: tuple[Tensor, Tensor, Tensor | None],
    z: Tensor,
    basis: Tensor,
    gain: Tensor | None,
    scale: Tensor,
) -> Tensor:
    """Gradient by the scale, sum of G * score, out of the other gradients: no pass of its own.

    The projection is homogeneous of degree 1 in z, the volume of degree 1/2 in the gain. The area
    a(p, q, g) of three products obeys 2 a = (p - 1) a_p + (q - 1) a_q + (g - 1) a_g.
    """
    dz, dbasis, dgain = found
    if form == "projection":
        return (dz * z).sum() / scale
    assert gain is not None
    assert dgain is not None
    if form == "volume":
        return 2 * (gain * dgain).sum() / scale
    by_products = dbasis[:, :, -1].sum()  # the constant coordinate of the rows is 1
    return ((basis * dbasis).sum() - by_products + ((gain - 1) * dgain).sum()) / (2 * scale)
