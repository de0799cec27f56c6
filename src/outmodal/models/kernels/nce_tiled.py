"""Contrastive sums and gradients over all pairs, tile by tile: stock operations, any device.

A tile of similarities is one matrix product, worked on in place and dropped; the tile of the
gradient is one more pass over it and two products. Memory is that of a few tiles whatever the
number of rows, arithmetic is 2 N^2 d forward and 6 N^2 d backward.

These are the primitives that `nce` is written over; `nce_triton` has the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from outmodal.models.kernels.products import product

LOG2E = 1 / math.log(2)
CPU_TILE = (512, 2048)
"""Rows and columns of a tile: 4 MiB of fp32, so that passes over it stay in the cache."""
DEVICE_TILE = (4096, 8192)
"""The same elsewhere: 128 MiB of fp32, so that products fill the device."""


class Sums(NamedTuple):
    """What a pass over a block of R rows and C columns adds up, in fp32 (fp64 for fp64).

    Attributes:
        row: [R] sums of exp(logit - shift) over the live columns that are not the partner.
        col: [C] the same over live rows.
        row_total: [R] plain sums of the logits of those pairs; None unless asked for.
        col_total: [C] the same over live rows.
    """

    row: Tensor
    col: Tensor
    row_total: Tensor | None
    col_total: Tensor | None


class Tile(NamedTuple):
    """A part of the block: rows i, columns j, and where the partners lie in it."""

    i: slice
    j: slice
    offset: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.i.stop - self.i.start, self.j.stop - self.j.start


def sums(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    shift: Tensor,
    partner: int,
    row_live: Tensor | None,
    col_live: Tensor | None,
    totals: bool,
) -> Sums:
    """Sums over rows and columns of exp(scale * q k^T - shift), partners left out.

    Args:
        q, k: [R, d], [C, d] rows and columns.
        scale, shift: One element each.
        partner: Row r pairs with column r + partner, where there is such a column.
        row_live, col_live: [R], [C] bool, False on rows and columns that do not take part; None
            where all do. Sums of rows and columns that do not are 0.
        totals: Whether to add up the logits as well.
    """
    left, right = operands(q, k)
    row, col = left.new_zeros(left.shape[0]), left.new_zeros(right.shape[0])
    weight_row, weight_col = _ones(row, row_live), _ones(col, col_live)
    for tile, logits in _logits2(left, right, scale, partner):
        e = _exp2(logits, shift)
        e.diagonal(tile.offset).zero_()
        row[tile.i].addmv_(e, weight_col[tile.j])
        col[tile.j].addmv_(e.t(), weight_row[tile.i])
    row, col = _only(row, row_live), _only(col, col_live)
    if not totals:
        return Sums(row, col, None, None)
    return Sums(row, col, *_totals(left, right, scale, partner, row_live, col_live))


def grads(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    shift: Tensor,
    partner: int,
    row_live: Tensor | None,
    col_live: Tensor | None,
    row_coef: Tensor,
    col_coef: Tensor | None,
    row_const: Tensor | None,
    col_const: Tensor | None,
    diag: Tensor,
) -> tuple[Tensor, Tensor]:
    """Products with the gradient G of the logits, which is never held.

    G[r, c] = exp(logit - shift) * (row_coef[r] + col_coef[c]) + row_const[r] + col_const[c] where
    row and column are live and no partners, diag[r] at row r's partner, 0 elsewhere.

    Args:
        q, k, scale, shift, partner, row_live, col_live: As for `sums`.
        row_coef, row_const, diag: [R]; col_coef, col_const: [C]. None is 0.

    Returns:
        scale * G k [R, d] and scale * G^T q [C, d], in fp32 (fp64 for fp64).
    """
    left, right = operands(q, k)
    out = _Gradient(left, right, row_live, col_live)
    spare = left.new_empty(_numbers(left, right))
    for tile, logits in _logits2(left, right, scale, partner):
        g = _exp2(logits, shift)
        g.mul_(_outer(spare, tile, row_coef, col_coef))
        if row_const is not None or col_const is not None:
            g.add_(_outer(spare, tile, row_const, col_const))
        _put_partners(g, tile, diag)
        out.add(tile, g)
    return out.times(scale)


def sigmoid_sums(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    partner: int,
    row_live: Tensor | None,
    col_live: Tensor | None,
) -> Tensor:
    """[R] sums over live columns of softplus(logit + bias), softplus(-(logit + bias)) at partners.

    Args:
        q, k, scale, partner, row_live, col_live: As for `sums`.
        bias: One element, added to all logits.
    """
    left, right = operands(q, k)
    row = left.new_zeros(left.shape[0])
    weight_col = _ones(left.new_empty(right.shape[0]), col_live)
    for tile, logits in _logits2(left, right, scale, partner):
        x = logits.mul_(1 / LOG2E).add_(bias)
        x.diagonal(tile.offset).neg_()
        row[tile.i].addmv_(softplus(x), weight_col[tile.j])
    return _only(row, row_live)


def sigmoid_grads(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    partner: int,
    row_live: Tensor | None,
    col_live: Tensor | None,
    upstream: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `sum(upstream * sigmoid_sums(...))`.

    Args:
        q, k, scale, bias, partner, row_live, col_live: As for `sigmoid_sums`.
        upstream: [R] weights of the rows.

    Returns:
        scale * G k [R, d], scale * G^T q [C, d] and the row sums of G [R], whose sum is the
        gradient of the bias; G[r, c] = upstream[r] * (sigmoid(logit + bias) - (c is partner)).
    """
    left, right = operands(q, k)
    out = _Gradient(left, right, row_live, col_live)
    dbias = left.new_zeros(left.shape[0])
    weight_col = _ones(left.new_empty(right.shape[0]), col_live)
    for tile, logits in _logits2(left, right, scale, partner):
        g = logits.mul_(1 / LOG2E).add_(bias)
        # sigmoid(x) - 1 cancels where x is large; -sigmoid(-x) does not
        at_partner = torch.sigmoid(-g.diagonal(tile.offset)).neg_()
        g.sigmoid_()
        g.diagonal(tile.offset).copy_(at_partner)
        g.mul_(upstream[tile.i, None])
        dbias[tile.i].addmv_(g, weight_col[tile.j])
        out.add(tile, g)
    return *out.times(scale), _only(dbias, row_live)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to full precision for any x; F.softplus cuts the tail off."""
    return F.logsigmoid(-x).neg_()


def operands(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the precision of all sums and products: fp32, or fp64 where they have it."""
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.float32)
    return q.to(dtype), k.to(dtype)


def tiles(rows: int, columns: int, partner: int, size: tuple[int, int]) -> Iterator[Tile]:
    """All tiles of a block, row by row."""
    for i in range(0, rows, size[0]):
        for j in range(0, columns, size[1]):
            here = slice(i, min(i + size[0], rows))
            yield Tile(here, slice(j, min(j + size[1], columns)), i + partner - j)


def tile_size(t: Tensor) -> tuple[int, int]:
    """Rows and columns of a tile where `t` lives."""
    return CPU_TILE if t.device.type == "cpu" else DEVICE_TILE


class _Gradient:
    """Sums of the tiles' products with G and G^T, from live rows and columns only."""

    def __init__(
        self, left: Tensor, right: Tensor, row_live: Tensor | None, col_live: Tensor | None
    ) -> None:
        self.live = row_live, col_live
        self.left, self.right = _only(left, row_live), _only(right, col_live)
        self.dq = torch.zeros_like(left)
        self.dk = left.new_zeros(right.shape[::-1])  # transposed: its products are quicker so
        self.rows, self.turned = slice(0, 0), left

    def add(self, tile: Tile, g: Tensor) -> None:
        """Meet a tile of G."""
        if tile.i != self.rows:
            self.rows, self.turned = tile.i, self.left[tile.i].t().contiguous()
        self.dq[tile.i] += product(g, self.right[tile.j].t())
        self.dk[:, tile.j] += product(self.turned, g.t())

    def times(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """scale * G k [R, d] and scale * G^T q [C, d]."""
        row_live, col_live = self.live
        dk = _only(self.dk.t(), col_live).contiguous()
        return _only(self.dq, row_live).mul_(scale), dk.mul_(scale)


def _logits2(
    left: Tensor, right: Tensor, scale: Tensor, partner: int
) -> Iterator[tuple[Tile, Tensor]]:
    """Every tile with its logits in units of log 2, to be worked on in place."""
    factor = scale * LOG2E
    rows, scaled = slice(0, 0), left
    for tile in tiles(left.shape[0], right.shape[0], partner, tile_size(left)):
        if tile.i != rows:
            rows, scaled = tile.i, left[tile.i] * factor
        yield tile, product(scaled, right[tile.j])


def _numbers(left: Tensor, right: Tensor) -> int:
    """How many a tile has at most."""
    rows, columns = tile_size(left)
    return min(rows, left.shape[0]) * min(columns, right.shape[0])


def _part(buffer: Tensor, tile: Tile) -> Tensor:
    """The beginning of a flat buffer in the shape of the tile, so that it is contiguous."""
    rows, columns = tile.shape
    return buffer[: rows * columns].view(rows, columns)


def _exp2(logits2: Tensor, shift: Tensor) -> Tensor:
    """exp(logit - shift) in place of the logits in units of log 2."""
    if shift.device.type != "cpu" or float(shift):  # reading it elsewhere would wait for a device
        logits2.sub_(shift * LOG2E)
    return logits2.exp2_()


def _outer(spare: Tensor, tile: Tile, row: Tensor | None, col: Tensor | None) -> Tensor:
    """row[r] + col[c] of a tile; what broadcasts is not written out where one is None."""
    if row is None and col is None:
        return spare.new_zeros(())
    if col is None:
        return _required(row)[tile.i, None]
    if row is None:
        return col[None, tile.j]
    return torch.add(row[tile.i, None], col[None, tile.j], out=_part(spare, tile))


def _required(t: Tensor | None) -> Tensor:
    assert t is not None
    return t


def _put_partners(g: Tensor, tile: Tile, diag: Tensor) -> None:
    place = g.diagonal(tile.offset)
    if place.numel():
        first = tile.i.start + max(0, -tile.offset)
        place.copy_(diag[first : first + place.numel()])


def _ones(like: Tensor, live: Tensor | None) -> Tensor:
    """Weights of a sum: 1 where live."""
    return torch.ones_like(like) if live is None else live.to(like.dtype)


def _only(t: Tensor, live: Tensor | None) -> Tensor:
    """[n, ...] with zeros in the rows that are not live."""
    if live is None:
        return t
    return torch.where(live.view(-1, *[1] * (t.dim() - 1)), t, t.new_zeros(()))


def _totals(
    left: Tensor,
    right: Tensor,
    scale: Tensor,
    partner: int,
    row_live: Tensor | None,
    col_live: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sums of logits need no pairs: a row times the sum of all columns, less its partner."""
    left, right = _only(left, row_live), _only(right, col_live)
    row, col = left @ right.sum(0), right @ left.sum(0)
    first, last = max(0, -partner), min(left.shape[0], right.shape[0] - partner)
    if last > first:
        pair = (left[first:last] * right[first + partner : last + partner]).sum(1)
        row[first:last] -= pair
        col[first + partner : last + partner] -= pair
    return row * scale, col * scale
