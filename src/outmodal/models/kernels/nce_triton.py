"""Contrastive sums and gradients between two sets of unit vectors, in Triton.

The primitives and their meaning are those of `nce_tiled`; see there and `nce` for the formulas.
The forward pass takes row and column sums from one tile of similarities with one exp2 an entry.
The backward pass recomputes the similarities, writes the gradient by the logits in chunks of rows
and leaves the rest to matrix products: 8 N^2 d operations in all, and never an N x N matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from outmodal.models.kernels import common_triton as common
from outmodal.models.kernels import nce_kernels_triton as kernels
from outmodal.models.kernels.common_triton import Tile, Walk, zeros
from outmodal.models.kernels.nce_tiled import Sums

NARROW = Tile(128, 128, 64, warps=8, stages=3)  # two programs on a multiprocessor: they overlap
WIDE = Tile(128, 256, 64, warps=8, stages=4)  # a quarter less traffic from the L2 cache
SINGLE = Tile(128, 128, 32, warps=8, stages=3)
# Bytes of a number -> (up to this d, tile of the sums, tile of the gradient). Chosen by counting
# registers and bytes, to be refined on a GPU: the audit compiles every entry.
TILES = {
    2: [(256, NARROW, NARROW), (1 << 30, WIDE, WIDE)],
    4: [(1 << 30, SINGLE, SINGLE)],
}
# The sigmoid's arithmetic needs more registers: no wide tile.
SIGMOID_TILES = {2: NARROW, 4: SINGLE}
SMALL = Tile(64, 64, 64, warps=4, stages=2)


def tiles(operand: Tensor) -> tuple[Tile, Tile]:
    """(tile of the sums, tile of the gradient) for an operand [n, d]."""
    if common.INTERPRETING:
        return SMALL, SMALL
    rows = TILES[operand.element_size()]
    return next((sums, grads) for most, sums, grads in rows if operand.shape[1] <= most)


def sigmoid_tile(operand: Tensor) -> Tile:
    """The same for both kernels of the sigmoid form."""
    return SMALL if common.INTERPRETING else SIGMOID_TILES[operand.element_size()]


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
    """Row and column sums of exp(logit - shift) over live entries off the partner diagonal.

    Args:
        q, k: [R, d] and [C, d] unit vectors, bf16, fp16 or fp32.
        scale, shift: One element each, fp32.
        partner: Row r pairs with column r + partner.
        row_live, col_live: [R] and [C] bool, or None where all are.
        totals: Also return the plain sums of the logits over the same entries.
    """
    walk = Walk(q, k, len(k), partner, row_live, col_live)
    tile, _ = tiles(walk.left)
    row, col = zeros(q), zeros(k)
    for first, last in walk.chunks(common.CHUNK_ROWS):
        row_part, col_part = walk.parts(tile, first, last)
        args = {"scale": scale, "shift": shift, "row_out": row_part, "col_out": col_part}
        walk.launch(kernels.sums_kernel, tile, first, last, args)
        row[first:last] = row_part.sum(0)
        col += col_part.sum(0)
    if not totals:
        return Sums(row, col, None, None)
    row_total = total_logits(q, k, scale, partner, row_live, col_live)
    return Sums(row, col, row_total, total_logits(k, q, scale, -partner, col_live, row_live))


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
    *,
    chunk_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """dq [R, d] and dk [C, d], fp32: scale * G @ k and scale * G^T @ q.

    G = exp(logit - shift) * (row_coef + col_coef) + row_const + col_const over live entries off
    the partner diagonal, diag on it; zero where a row or a column is dead. Coefficients are fp32,
    [R] by row and [C] by column. chunk_dtype: what G is stored in (bf16 for half inputs; fp32 is
    twice as exact and several times as slow).
    """
    # The scale is folded into the coefficients: no pass over dq and dk for it.
    columns = zeros(k) if col_coef is None else col_coef * scale
    args = {"scale": scale, "shift": shift, "diag": diag * scale}
    args |= {"row_coef": row_coef * scale, "col_coef": columns}
    walk = Walk(q, k, len(k), partner, row_live, col_live)
    dq, dk, _ = products(
        kernels.gradient_kernel, tiles(walk.left)[1], walk, q, k, args, chunk_dtype
    )
    if row_const is not None or col_const is not None:
        # Constants make that part of G of rank 2: no pass over all pairs for it.
        a = zeros(q) if row_const is None else row_const * scale
        b = zeros(k) if col_const is None else col_const * scale
        add_constants(dq, k, a, b, row_live, col_live, partner)
        add_constants(dk, q, b, a, col_live, row_live, -partner)
    return dq, dk


def sigmoid_sums(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    partner: int,
    row_live: Tensor | None,
    col_live: Tensor | None,
) -> Tensor:
    """[R] fp32: sums over live columns of softplus(logit + bias), negated inside on the pair."""
    walk = Walk(q, k, len(k), partner, row_live, col_live)
    tile = sigmoid_tile(walk.left)
    row = zeros(q)
    for first, last in walk.chunks(common.CHUNK_ROWS):
        part, _ = walk.parts(tile, first, last)
        args = {"scale": scale, "bias": bias, "row_out": part}
        walk.launch(kernels.sigmoid_sums_kernel, tile, first, last, args)
        row[first:last] = part.sum(0)
    return row


def sigmoid_grads(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    partner: int,
    row_live: Tensor | None,
    col_live: Tensor | None,
    upstream: Tensor,
    *,
    chunk_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 gradients of sum(upstream * sigmoid_sums): dq [R, d], dk [C, d], bias by row [R]."""
    walk = Walk(q, k, len(k), partner, row_live, col_live)
    args = {"scale": scale, "bias": bias, "upstream": upstream.contiguous()}
    return products(
        kernels.sigmoid_gradient_kernel, sigmoid_tile(walk.left), walk, q, k, args, chunk_dtype
    )


def products(
    kernel: Any,
    tile: Tile,
    walk: Walk,
    q: Tensor,
    k: Tensor,
    args: dict[str, Tensor],
    chunk_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(G @ k, G^T @ q, row sums where the kernel has them) with G written in chunks of rows."""
    dtype = chunk_dtype or common.gradient_dtype(torch.promote_types(q.dtype, k.dtype))
    dq = zeros(q, q.shape[1])
    dk = zeros(k, k.shape[1])
    row = zeros(q)
    stride = common.padded(walk.cols)
    height = common.chunk_rows(stride, 1, dtype.itemsize, tile, walk.rows)
    chunk = torch.empty(height, stride, dtype=dtype, device=q.device)
    for first, last in walk.chunks(height):
        target = common.descriptor(chunk, tile.rows, tile.cols)
        own = {"out": target}
        if "row_out" in kernel.arg_names:
            own["row_out"], _ = walk.parts(tile, first, last)
        walk.launch(kernel, tile, first, last, args | own)
        g = chunk[: last - first, : walk.cols]
        common.add_product(dq[first:last], g, k, first=True)
        common.add_product(dk, g.t(), q[first:last], first=first == 0)
        if "row_out" in own:
            row[first:last] = own["row_out"].sum(0)
    return dq, dk, row


def total_logits(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    partner: int,
    row_live: Tensor | None,
    col_live: Tensor | None,
) -> Tensor:
    """[R] fp32: sums of logits over live entries off the pair, by one product with the sum of k."""
    weight = weights(col_live, k)
    total = q.float() @ (weight @ k.float())
    own, its = pairs(len(q), len(k), partner)
    total[own] -= (q[own].float() * k[its].float()).sum(1) * weight[its]
    return total * scale * weights(row_live, q)


def add_constants(
    dq: Tensor,
    k: Tensor,
    row_const: Tensor,
    col_const: Tensor,
    row_live: Tensor | None,
    col_live: Tensor | None,
    partner: int,
) -> None:
    """dq += C @ k, where C[r, c] = row_const[r] + col_const[c] over live entries off the pair."""
    wide = k.float()
    alive_r, alive_c = weights(row_live, dq), weights(col_live, k)
    dq.addr_(row_const * alive_r, alive_c @ wide)
    dq.addr_(alive_r, (col_const * alive_c) @ wide)
    own, its = pairs(len(dq), len(k), partner)
    coefficient = (row_const[own] + col_const[its]) * alive_r[own] * alive_c[its]
    dq[own] -= coefficient[:, None] * wide[its]


def weights(live: Tensor | None, like: Tensor) -> Tensor:
    """[n] fp32: 1 where live, else 0."""
    return torch.ones_like(zeros(like)) if live is None else live.float()


def pairs(rows: int, cols: int, partner: int) -> tuple[slice, slice]:
    """(rows whose pair is among the columns, those columns)."""
    first = min(rows, max(0, -partner))
    last = max(first, min(rows, cols - partner))
    return slice(first, last), slice(first + partner, last + partner)
