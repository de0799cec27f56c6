"""The Triton kernels of `ova_triton`: tiles of one-against-all logits and the gradient by planes.

As in `nce_kernels_triton`, with the columns' J basis vectors one plane after the other in k
[J * C, d]: plane j of column c is row j * C + c. FORM is 0 for the projection, 1 for the volume
and 2 for the area. The sums need only the planes' sum of squares (the area both its planes), so
they take one plane after the other; the gradient keeps the tiles of all J planes in registers.
"""

from __future__ import annotations

import triton.language as tl

from outmodal.models.kernels import common_triton as common
from outmodal.models.kernels.common_triton import jit, tile_of, tile_product
from outmodal.models.kernels.nce_kernels_triton import needs_mask, pair_mask
from outmodal.models.kernels.ova_tiled import EPS as OVA_EPS

LOG2E = tl.constexpr(common.LOG2E)
EPS = tl.constexpr(OVA_EPS)


@jit
def from_squares(square: tl.tensor, by_col: tl.tensor, FORM: tl.constexpr) -> tl.tensor:
    """Scores from the planes' sum of squares, for projection and volume."""
    if FORM == 0:
        return tl.sqrt(square + EPS)
    else:
        return -tl.sqrt(by_col[None, :] * tl.maximum(1.0 - square, 0.0) + EPS)


@jit
def sums_kernel(
    q: tl.tensor,
    k: tl.tensor,
    gain: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    row_live: tl.tensor,
    col_live: tl.tensor,
    row_out: tl.tensor,
    col_out: tl.tensor,
    row_total: tl.tensor,
    col_total: tl.tensor,
    row_first: tl.tensor,
    row_last: tl.tensor,
    cols: tl.tensor,
    depth: tl.tensor,
    partner: tl.tensor,
    J: tl.constexpr,
    FORM: tl.constexpr,
    TOTALS: tl.constexpr,
    MASKED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    UP: tl.constexpr,
) -> None:
    """Partial sums of a tile: row_* [column tiles, rows], col_* [row tiles, cols]."""
    height = row_last - row_first
    m, n = tile_of(tl.program_id(0), tl.cdiv(height, BM), tl.cdiv(cols, BN), GROUP)
    row = row_first + m * BM
    col = n * BN
    r = row + tl.arange(0, BM)
    c = col + tl.arange(0, BN)
    by_col = tl.load(gain + c, mask=c < cols, other=0.0)
    y = tile_product(q, k, row, col, depth, BM, BN, BK, UP)
    if FORM == 2:
        z = tile_product(q, k, row, col + cols, depth, BM, BN, BK, UP)
        inner = 1.0 + by_col[None, :] - y - z
        score = 0.5 * inner * inner - 2.0 * (1.0 - y) * (1.0 - z)
    else:
        square = y * y
        for j in range(1, J):
            y = tile_product(q, k, row, col + j * cols, depth, BM, BN, BK, UP)
            square += y * y
        score = from_squares(square, by_col, FORM)
    x = score * (tl.load(scale) * LOG2E)
    e = tl.exp2(x - tl.load(shift) * LOG2E)
    if MASKED or needs_mask(row, col, row_last, cols, partner, BM, BN):
        live, _ = pair_mask(r, c, row_last, cols, partner, row_live, col_live, MASKED)
        e = tl.where(live, e, 0.0)
        x = tl.where(live, x, 0.0)
    at_row = n * height + (r - row_first)
    at_col = m * cols + c
    tl.store(row_out + at_row, tl.sum(e, 1), mask=r < row_last)
    tl.store(col_out + at_col, tl.sum(e, 0), mask=c < cols)
    if TOTALS:
        tl.store(row_total + at_row, tl.sum(x, 1) * (1 / LOG2E), mask=r < row_last)
        tl.store(col_total + at_col, tl.sum(x, 0) * (1 / LOG2E), mask=c < cols)


@jit
def add_plane(
    a: tl.tensor, k: tl.tensor, row: tl.tensor, start: tl.tensor, y: tl.tensor, UP: tl.constexpr
) -> tl.tensor:
    """y plus the product of a [BM, BK] with a plane's block."""
    b = k.load([row, start])
    if UP:
        b = b.to(tl.float32)
    return tl.dot(a, b.T, y)


@jit
def plane_products(
    q: tl.tensor,
    k: tl.tensor,
    row: tl.tensor,
    col: tl.tensor,
    cols: tl.tensor,
    depth: tl.tensor,
    J: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UP: tl.constexpr,
) -> tl.tensor:
    """Five tiles [BM, BN] of products with the planes, the first J of them filled."""
    y0 = tl.zeros((BM, BN), tl.float32)
    y1 = tl.zeros((BM, BN), tl.float32)
    y2 = tl.zeros((BM, BN), tl.float32)
    y3 = tl.zeros((BM, BN), tl.float32)
    y4 = tl.zeros((BM, BN), tl.float32)
    for start in range(0, depth, BK):
        a = q.load([row, start])
        if UP:
            a = a.to(tl.float32)
        y0 = add_plane(a, k, col, start, y0, UP)
        if J > 1:
            y1 = add_plane(a, k, col + cols, start, y1, UP)
        if J > 2:
            y2 = add_plane(a, k, col + 2 * cols, start, y2, UP)
        if J > 3:
            y3 = add_plane(a, k, col + 3 * cols, start, y3, UP)
        if J > 4:
            y4 = add_plane(a, k, col + 4 * cols, start, y4, UP)
    return y0, y1, y2, y3, y4


@jit
def sum_of_squares(
    y0: tl.tensor,
    y1: tl.tensor,
    y2: tl.tensor,
    y3: tl.tensor,
    y4: tl.tensor,
    J: tl.constexpr,
) -> tl.tensor:
    """Over the first J planes."""
    square = y0 * y0
    if J > 1:
        square += y1 * y1
    if J > 2:
        square += y2 * y2
    if J > 3:
        square += y3 * y3
    if J > 4:
        square += y4 * y4
    return square


@jit
def store_planes(
    out: tl.tensor,
    at: tl.tensor,
    col: tl.tensor,
    plane_rows: tl.tensor,
    g: tl.tensor,
    y0: tl.tensor,
    y1: tl.tensor,
    y2: tl.tensor,
    y3: tl.tensor,
    y4: tl.tensor,
    J: tl.constexpr,
) -> None:
    """g times each of the first J planes, a plane of the chunk each."""
    out.store([at, col], (g * y0).to(out.dtype))
    if J > 1:
        out.store([at + plane_rows, col], (g * y1).to(out.dtype))
    if J > 2:
        out.store([at + 2 * plane_rows, col], (g * y2).to(out.dtype))
    if J > 3:
        out.store([at + 3 * plane_rows, col], (g * y3).to(out.dtype))
    if J > 4:
        out.store([at + 4 * plane_rows, col], (g * y4).to(out.dtype))


@jit
def gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    out: tl.tensor,
    gain: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    row_live: tl.tensor,
    col_live: tl.tensor,
    row_coef: tl.tensor,
    col_coef: tl.tensor,
    row_const: tl.tensor,
    col_const: tl.tensor,
    diag: tl.tensor,
    gain_out: tl.tensor,
    plane_rows: tl.tensor,
    row_first: tl.tensor,
    row_last: tl.tensor,
    cols: tl.tensor,
    depth: tl.tensor,
    partner: tl.tensor,
    J: tl.constexpr,
    FORM: tl.constexpr,
    CONSTANTS: tl.constexpr,
    MASKED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    UP: tl.constexpr,
) -> None:
    """A tile of the gradient by each plane's products, into out [J * plane_rows, cols].

    gain_out [row tiles, cols]: partial column sums of the gradient by the gain.
    """
    m, n = tile_of(tl.program_id(0), tl.cdiv(row_last - row_first, BM), tl.cdiv(cols, BN), GROUP)
    row = row_first + m * BM
    col = n * BN
    y0, y1, y2, y3, y4 = plane_products(q, k, row, col, cols, depth, J, BM, BN, BK, UP)
    r = row + tl.arange(0, BM)
    c = col + tl.arange(0, BN)
    by_col = tl.load(gain + c, mask=c < cols, other=0.0)
    if FORM == 2:
        inner = 1.0 + by_col[None, :] - y0 - y1
        score = 0.5 * inner * inner - 2.0 * (1.0 - y0) * (1.0 - y1)
    else:
        square = sum_of_squares(y0, y1, y2, y3, y4, J)
        score = from_squares(square, by_col, FORM)
    e = tl.exp2(score * (tl.load(scale) * LOG2E) - tl.load(shift) * LOG2E)
    a_row = tl.load(row_coef + r, mask=r < row_last, other=0.0)
    b_col = tl.load(col_coef + c, mask=c < cols, other=0.0)
    g = e * (a_row[:, None] + b_col[None, :])
    if CONSTANTS:
        flat_row = tl.load(row_const + r, mask=r < row_last, other=0.0)
        flat_col = tl.load(col_const + c, mask=c < cols, other=0.0)
        g += flat_row[:, None] + flat_col[None, :]
    if MASKED or needs_mask(row, col, row_last, cols, partner, BM, BN):
        live, pair = pair_mask(r, c, row_last, cols, partner, row_live, col_live, MASKED)
        on_pair = tl.load(diag + r, mask=r < row_last, other=0.0)
        g = tl.where(live, g, tl.where(pair, on_pair[:, None], 0.0))
    at = m * BM
    if FORM == 2:
        tl.store(gain_out + m * cols + c, tl.sum(g * inner, 0), mask=c < cols)
        rest = 1.0 - by_col[None, :]
        out.store([at, col], (g * (rest + y0 - y1)).to(out.dtype))
        out.store([at + plane_rows, col], (g * (rest - y0 + y1)).to(out.dtype))
    else:
        if FORM == 0:
            g = g / score
        else:
            outside = tl.maximum(1.0 - square, 0.0)
            g = -g / score
            tl.store(gain_out + m * cols + c, -0.5 * tl.sum(g * outside, 0), mask=c < cols)
            g = tl.where(outside > 0.0, g * by_col[None, :], 0.0)
        store_planes(out, at, col, plane_rows, g, y0, y1, y2, y3, y4, J)
