"""The Triton kernels of `nce_triton`: tiles of the logits, their sums and the gradient by them.

Every kernel takes a chunk of rows [row_first, row_last) of the descriptors q and k, one tile a
program. partner: row r pairs with column r + partner. Pairs, dead rows and dead columns are masked
here; a tile that lies inside the matrix and off the pairs' diagonal skips the masks unless MASKED.
"""

from __future__ import annotations

import triton.language as tl

from outmodal.models.kernels import common_triton as common
from outmodal.models.kernels.common_triton import jit, tile_of, tile_product

LOG2E = tl.constexpr(common.LOG2E)
LN2 = tl.constexpr(1 / common.LOG2E)


@jit
def pair_mask(
    r: tl.tensor,
    c: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    partner: tl.tensor,
    row_live: tl.tensor,
    col_live: tl.tensor,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """[BM, BN]: entries of the matrix that are live and not a pair, and the pairs."""
    inside = (r < rows)[:, None] & (c < cols)[None, :]
    if MASKED:
        alive_r = tl.load(row_live + r, mask=r < rows, other=0) != 0
        alive_c = tl.load(col_live + c, mask=c < cols, other=0) != 0
        inside = inside & alive_r[:, None] & alive_c[None, :]
    pair = (r + partner)[:, None] == c[None, :]
    return inside & (pair == 0), inside & pair


@jit
def needs_mask(
    row: tl.tensor,
    col: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    partner: tl.tensor,
    BM: tl.constexpr,
    BN: tl.constexpr,
) -> tl.tensor:
    """Whether a tile leaves the matrix or meets the pairs' diagonal."""
    ahead = row + partner - col
    return ((ahead > -BM) & (ahead < BN)) | (row + BM > rows) | (col + BN > cols)


@jit
def sums_kernel(
    q: tl.tensor,
    k: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    row_live: tl.tensor,
    col_live: tl.tensor,
    row_out: tl.tensor,
    col_out: tl.tensor,
    row_first: tl.tensor,
    row_last: tl.tensor,
    cols: tl.tensor,
    depth: tl.tensor,
    partner: tl.tensor,
    MASKED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    UP: tl.constexpr,
) -> None:
    """Partial sums of a tile: row_out [column tiles, rows], col_out [row tiles, cols]."""
    height = row_last - row_first
    m, n = tile_of(tl.program_id(0), tl.cdiv(height, BM), tl.cdiv(cols, BN), GROUP)
    row = row_first + m * BM
    col = n * BN
    s = tile_product(q, k, row, col, depth, BM, BN, BK, UP)
    e = tl.exp2(s * (tl.load(scale) * LOG2E) - tl.load(shift) * LOG2E)
    r = row + tl.arange(0, BM)
    c = col + tl.arange(0, BN)
    if MASKED or needs_mask(row, col, row_last, cols, partner, BM, BN):
        live, _ = pair_mask(r, c, row_last, cols, partner, row_live, col_live, MASKED)
        e = tl.where(live, e, 0.0)
    tl.store(row_out + n * height + (r - row_first), tl.sum(e, 1), mask=r < row_last)
    tl.store(col_out + m * cols + c, tl.sum(e, 0), mask=c < cols)


@jit
def gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    row_live: tl.tensor,
    col_live: tl.tensor,
    row_coef: tl.tensor,
    col_coef: tl.tensor,
    diag: tl.tensor,
    row_first: tl.tensor,
    row_last: tl.tensor,
    cols: tl.tensor,
    depth: tl.tensor,
    partner: tl.tensor,
    MASKED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    UP: tl.constexpr,
) -> None:
    """A tile of the gradient by the logits, into out [rows of the chunk, cols]."""
    m, n = tile_of(tl.program_id(0), tl.cdiv(row_last - row_first, BM), tl.cdiv(cols, BN), GROUP)
    row = row_first + m * BM
    col = n * BN
    s = tile_product(q, k, row, col, depth, BM, BN, BK, UP)
    r = row + tl.arange(0, BM)
    c = col + tl.arange(0, BN)
    a = tl.load(row_coef + r, mask=r < row_last, other=0.0)
    b = tl.load(col_coef + c, mask=c < cols, other=0.0)
    e = tl.exp2(s * (tl.load(scale) * LOG2E) - tl.load(shift) * LOG2E)
    g = e * (a[:, None] + b[None, :])
    if MASKED or needs_mask(row, col, row_last, cols, partner, BM, BN):
        live, pair = pair_mask(r, c, row_last, cols, partner, row_live, col_live, MASKED)
        on_pair = tl.load(diag + r, mask=r < row_last, other=0.0)
        g = tl.where(live, g, tl.where(pair, on_pair[:, None], 0.0))
    out.store([m * BM, col], g.to(out.dtype))


@jit
def log2_of_one_plus(t: tl.tensor) -> tl.tensor:
    """log2(1 + t) for 0 <= t <= 1, by its series where 1 + t would lose what t says."""
    series = t * (1.0 - t * (0.5 - t * (0.3333333333 - t * 0.25))) * LOG2E
    return tl.where(t < 0.015625, series, tl.log2(1.0 + t))


@jit
def sigmoid_sums_kernel(
    q: tl.tensor,
    k: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    row_live: tl.tensor,
    col_live: tl.tensor,
    row_out: tl.tensor,
    row_first: tl.tensor,
    row_last: tl.tensor,
    cols: tl.tensor,
    depth: tl.tensor,
    partner: tl.tensor,
    MASKED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    UP: tl.constexpr,
) -> None:
    """Partial row sums of softplus(+-logit): row_out [column tiles, rows]."""
    height = row_last - row_first
    m, n = tile_of(tl.program_id(0), tl.cdiv(height, BM), tl.cdiv(cols, BN), GROUP)
    row = row_first + m * BM
    col = n * BN
    s = tile_product(q, k, row, col, depth, BM, BN, BK, UP)
    r = row + tl.arange(0, BM)
    c = col + tl.arange(0, BN)
    # In units of ln 2: softplus(s) = ln2 * (max(x, 0) + log2(1 + 2^-|x|)) with x = s log2(e).
    x = s * (tl.load(scale) * LOG2E) + tl.load(bias) * LOG2E
    y = tl.maximum(x, 0.0) + log2_of_one_plus(tl.exp2(-tl.abs(x)))
    if MASKED or needs_mask(row, col, row_last, cols, partner, BM, BN):
        live, pair = pair_mask(r, c, row_last, cols, partner, row_live, col_live, MASKED)
        y = tl.where(live, y, tl.where(pair, y - x, 0.0))  # softplus(-s) = softplus(s) - s
    tl.store(row_out + n * height + (r - row_first), tl.sum(y, 1) * LN2, mask=r < row_last)


@jit
def sigmoid_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    row_live: tl.tensor,
    col_live: tl.tensor,
    upstream: tl.tensor,
    row_out: tl.tensor,
    row_first: tl.tensor,
    row_last: tl.tensor,
    cols: tl.tensor,
    depth: tl.tensor,
    partner: tl.tensor,
    MASKED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    UP: tl.constexpr,
) -> None:
    """A tile of the gradient by the logits, and its partial row sums (the bias's gradient)."""
    height = row_last - row_first
    m, n = tile_of(tl.program_id(0), tl.cdiv(height, BM), tl.cdiv(cols, BN), GROUP)
    row = row_first + m * BM
    col = n * BN
    s = tile_product(q, k, row, col, depth, BM, BN, BK, UP)
    r = row + tl.arange(0, BM)
    c = col + tl.arange(0, BN)
    w = tl.load(upstream + r, mask=r < row_last, other=0.0)
    x = s * (tl.load(scale) * LOG2E) + tl.load(bias) * LOG2E
    g = w[:, None] / (1.0 + tl.exp2(-x))  # exp2 overflows to inf and the quotient to 0, as it must
    if MASKED or needs_mask(row, col, row_last, cols, partner, BM, BN):
        live, pair = pair_mask(r, c, row_last, cols, partner, row_live, col_live, MASKED)
        # sigmoid(x) - 1 cancels where x is large; -sigmoid(-x) does not.
        on_pair = -w[:, None] / (1.0 + tl.exp2(x))
        g = tl.where(live, g, tl.where(pair, on_pair, 0.0))
    tl.store(row_out + n * height + (r - row_first), tl.sum(g, 1), mask=r < row_last)
    out.store([m * BM, col], (g * tl.load(scale)).to(out.dtype))
