"""One-against-all sums and gradients tile by tile, in plain PyTorch, on any device.

The primitives of `ova` (the Triton file has the same two with the same signatures). They score
every row z_r against every column's group of vectors, given as J basis vectors and a gain, with
y_j = basis_j . z_r:

- projection: s = sqrt(sum_j y_j^2 + eps), logit = scale * s. The basis is orthonormal, so that s is
  the length of z's projection on the group's subspace.
- volume: v = sqrt(gain * max(1 - sum_j y_j^2, 0) + eps), logit = -scale * v. Same basis; gain is
  the determinant of the group's Gram matrix, so that v is the volume that z spans with the group.
- area: a = 2 (1 - y_0)(1 - y_1) - (1 - y_0 - y_1 + gain)^2 / 2, logit = -scale * a. The basis is
  the group's two unit vectors and gain their product: a is twice the squared area of a triangle.

Memory is a few tiles; the logits are computed a second time in the backward pass. Exponentials are
exp2, for which log2(e) is folded into the operands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from outmodal.models.kernels.nce_tiled import Sums

Form = Literal["projection", "volume", "area"]
# Added to a squared score: the root has a finite gradient at 0.
EPS = 1e-12
LOG2E = 1.0 / math.log(2.0)
# (rows, columns) of a tile: the planes of a group should stay in a core's cache.
CPU_TILE = (256, 1024)
DEVICE_TILE = (2048, 8192)


def sums(
    z: Tensor,
    basis: Tensor,
    gain: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    partner: int,
    row_live: Tensor | None,
    col_live: Tensor | None,
    form: Form,
    totals: bool,
) -> Sums:
    """Row and column sums of exp(logit - shift) over live entries off the partner diagonal.

    Args:
        z: [R, d] rows.
        basis: [J, C, d] vectors of every column's group; any strides.
        gain: [C], for volume and area; else None.
        scale, shift: One element each.
        partner: Row r's own column is r + partner, where that is in [0, C).
        row_live: [R] bool, False on rows that take no part; None: all do. col_live: [C] alike.
        form: The score.
        totals: Also sum the logits themselves (label smoothing).

    Returns:
        Sums of row [R], col [C] and, with totals, row_total [R] and col_total [C], else None.
    """
    block = Block.of(z, basis, gain, scale, partner, row_live, col_live, form)
    row, col = block.z.new_zeros(len(z)), block.z.new_zeros(basis.shape[1])
    found = Sums(row, col, row.clone() if totals else None, col.clone() if totals else None)
    for rows, cols in block.tiles():
        x, _ = block.exponents(block.planes(rows, cols), cols)
        block.add_sums(x, shift, found, rows, cols)
    return found


def grads(
    z: Tensor,
    basis: Tensor,
    gain: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    partner: int,
    row_live: Tensor | None,
    col_live: Tensor | None,
    form: Form,
    row_coef: Tensor,
    col_coef: Tensor | None,
    row_const: Tensor | None,
    col_const: Tensor | None,
    diag: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients by rows, basis and gain, given the gradient G by the logits.

    G[r, c] = exp(logit - shift) * (row_coef[r] + col_coef[c]) + row_const[r] + col_const[c] on
    live entries off the partner diagonal, diag[r] on the diagonal, zero elsewhere. Arguments as
    in `sums`; row_* and diag are [R], col_* [C], None is zero.

    Returns:
        (dz [R, d], dbasis [J, C, d], dgain [C] or None for the projection).
    """
    block = Block.of(z, basis, gain, scale, partner, row_live, col_live, form)
    dz, dbasis = torch.zeros_like(block.z), block.z.new_zeros(basis.shape)
    dgain = None if gain is None else block.z.new_zeros(basis.shape[1])
    slopes = Slopes.of(scale, row_coef, col_coef, row_const, col_const, diag)
    for rows, cols in block.tiles():
        planes = block.planes(rows, cols)
        x, kept = block.exponents(planes, cols)
        g = slopes.tile(block, x, shift, rows, cols)
        by_gain = block.chain(g, planes, kept, cols)
        if dgain is not None and by_gain is not None:
            dgain[cols] += by_gain
        for j, h in enumerate(planes):
            dz[rows].addmm_(h, block.basis[j, cols])
            dbasis[j, cols].addmm_(h.T, block.z[rows])
    return dz, dbasis, dgain


@dataclass(frozen=True)
class Slopes:
    """The vectors that G is made of, see `grads`, times the scale of d logit / d y."""

    row: Tensor
    col: Tensor | None
    row_const: Tensor | None
    col_const: Tensor | None
    pair: Tensor

    @classmethod
    def of(
        cls,
        scale: Tensor,
        row: Tensor,
        col: Tensor | None,
        row_const: Tensor | None,
        col_const: Tensor | None,
        pair: Tensor,
    ) -> Slopes:
        b, c, d = (None if t is None else t * scale for t in (col, row_const, col_const))
        return cls(row * scale, b, c, d, pair * scale)

    def tile(self, block: Block, x: Tensor, shift: Tensor, rows: slice, cols: slice) -> Tensor:
        """scale * G of a tile, in place of its exponents x."""
        e = x.sub_(shift * LOG2E).exp2_()
        if self.col is None:
            e.mul_(self.row[rows, None])
        else:
            e.mul_(self.row[rows, None] + self.col[None, cols])
        if self.row_const is not None:
            e += self.row_const[rows, None]
        if self.col_const is not None:
            e += self.col_const[None, cols]
        return block.blank(e, rows, cols, self.pair)


@dataclass(frozen=True)
class Block:
    """Operands of a call in the type of the computation, and what is computed a tile at a time.

    bits = scale * log2(e) turns a score into an exponent of two. For projection and volume it is
    folded into `left`, the rows of the product; for the area `left` is z itself.
    """

    z: Tensor
    left: Tensor
    basis: Tensor
    gain: Tensor | None
    bits: Tensor
    partner: int
    dead_rows: Tensor | None
    dead_cols: Tensor | None
    form: Form

    @classmethod
    def of(
        cls,
        z: Tensor,
        basis: Tensor,
        gain: Tensor | None,
        scale: Tensor,
        partner: int,
        row_live: Tensor | None,
        col_live: Tensor | None,
        form: Form,
    ) -> Block:
        dtype = torch.promote_types(z.dtype, torch.float32)
        z, basis = z.to(dtype), basis.to(dtype)
        bits = scale.to(dtype).reshape(()) * LOG2E
        return cls(
            z=z,
            left=z if form == "area" else z * bits,
            basis=basis,
            gain=None if gain is None else gain.to(dtype),
            bits=bits,
            partner=partner,
            dead_rows=None if row_live is None else ~row_live,
            dead_cols=None if col_live is None else ~col_live,
            form=form,
        )

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """(rows, columns) of every tile, a column's tiles one after the other."""
        high, wide = CPU_TILE if self.z.device.type == "cpu" else DEVICE_TILE
        for c in range(0, self.basis.shape[1], wide):
            for r in range(0, len(self.z), high):
                yield (
                    slice(r, min(r + high, len(self.z))),
                    slice(c, min(c + wide, self.basis.shape[1])),
                )

    def planes(self, rows: slice, cols: slice) -> list[Tensor]:
        """J products [r, c] of left with the basis vectors."""
        return [self.left[rows] @ b[cols].T for b in self.basis]

    def exponents(self, planes: list[Tensor], cols: slice) -> tuple[Tensor, list[Tensor]]:
        """(logits * log2(e) [r, c], what `chain` needs of the way there) of a tile."""
        if self.form == "area":
            return self._area(planes, cols)
        square = planes[0].square()
        for y in planes[1:]:
            square.addcmul_(y, y)
        tiny = self.bits * self.bits * EPS
        if self.gain is None:
            root = square.add_(tiny).sqrt_()
            return root.clone(), [root]
        outside = torch.sub(self.bits * self.bits, square, out=square).clamp_(min=0)
        root = (outside * self.gain[None, cols]).add_(tiny).sqrt_()
        return root.neg(), [root, outside]

    def add_sums(self, x: Tensor, shift: Tensor, sums: Sums, rows: slice, cols: slice) -> None:
        """Add a tile with exponents x, which is overwritten, to the sums."""
        if sums.row_total is not None and sums.col_total is not None:
            plain = self.blank(x.clone(), rows, cols)
            sums.row_total[rows] += plain.sum(1).div_(LOG2E)
            sums.col_total[cols] += plain.sum(0).div_(LOG2E)
        e = self.blank(x.sub_(shift * LOG2E).exp2_(), rows, cols)
        sums.row[rows] += e.sum(1)
        sums.col[cols] += e.sum(0)

    def _area(self, planes: list[Tensor], cols: slice) -> tuple[Tensor, list[Tensor]]:
        assert self.gain is not None
        p, q = planes
        inner = (1 + self.gain)[None, cols] - p  # of the triangle's two sides, once q is off too
        inner -= q
        x = inner.square().mul_(0.5).addcmul_(1 - p, 1 - q, value=-2)
        return x.mul_(self.bits), [inner]

    def chain(
        self, g: Tensor, planes: list[Tensor], kept: list[Tensor], cols: slice
    ) -> Tensor | None:
        """Turn planes into gradients by y_j, in place; [c] gradient by the gain.

        g [r, c] is scale times the gradient by the logits; kept is what `exponents` kept.
        """
        if self.form == "area":
            return self._area_chain(g, planes, kept[0], cols)
        g = g.div_(kept[0])
        by_gain = None
        if self.gain is not None:
            outside = kept[1]
            by_gain = (g * outside).sum(0).mul_(-0.5).div_(self.bits)
            g.mul_(self.gain[None, cols]).masked_fill_(outside == 0, 0)
        for y in planes:
            y.mul_(g)
        return by_gain

    def _area_chain(self, g: Tensor, planes: list[Tensor], inner: Tensor, cols: slice) -> Tensor:
        assert self.gain is not None
        p, q = planes
        rest = (1 - self.gain)[None, cols]
        ahead = p - q
        torch.add(rest, ahead, out=p).mul_(g)
        torch.sub(rest, ahead, out=q).mul_(g)
        return inner.mul_(g).sum(0)

    def blank(self, x: Tensor, rows: slice, cols: slice, on_pair: Tensor | None = None) -> Tensor:
        """Zero the dead entries of a tile; put `on_pair` [R] (or zero) on its partner diagonal."""
        if self.dead_rows is not None:
            x.masked_fill_(self.dead_rows[rows, None], 0)
        if self.dead_cols is not None:
            x.masked_fill_(self.dead_cols[None, cols], 0)
        first = max(rows.start, cols.start - self.partner)
        last = min(rows.stop, cols.stop - self.partner)
        if first < last:
            r = torch.arange(first, last, device=x.device)
            x[r - rows.start, r + self.partner - cols.start] = 0 if on_pair is None else on_pair[r]
        return x
