"""Lower bounds of mean distances from bf16 products, and the columns where they are smallest.

`candidates` has the meaning of the one of `nearest_tiled`: what it finds is never above the exact
distance, and a column it leaves out is no nearer than the last one it keeps. With x = b + e, b the
bf16 rounding of x, the triangle inequality gives |x - y| >= |b - b'| - |e| - |e'|, and |e| and |e'|
are known exactly: the bound is tight to a fifth of a per cent or so, so that few columns need a
measurement. Every tile of columns yields its `keep` smallest bounds; the rest is a short selection.

A bound travels in one word with its column: bounds are not negative, so that their bits order as
integers do, and the column's place in its tile replaces the lowest bits, which rounds downwards.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from outmodal.models.kernels import common_triton as common
from outmodal.models.kernels import nearest_tiled
from outmodal.models.kernels.common_triton import Tile, jit, tile_of, tile_product
from outmodal.models.kernels.nearest_tiled import Problem

NONE = tl.constexpr(0x7FFFFFFF)
TILE = Tile(128, 128, 64, warps=8, stages=3)
SMALL = Tile(64, 64, 64, warps=4, stages=2)
# Above it the selection inside a tile costs more than it saves.
MOST_KEPT = 8


@jit
def candidates_kernel(
    q: tl.tensor,
    k: tl.tensor,
    row_square: tl.tensor,
    row_error: tl.tensor,
    col_square: tl.tensor,
    col_error: tl.tensor,
    out: tl.tensor,
    row_first: tl.tensor,
    row_last: tl.tensor,
    cols: tl.tensor,
    depth: tl.tensor,
    planes: tl.tensor,
    KEEP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    UP: tl.constexpr,
) -> None:
    """The KEEP smallest bounds of a tile by row, packed: out [KEEP, column tiles, rows]."""
    height = row_last - row_first
    col_tiles = tl.cdiv(cols, BN)
    m, n = tile_of(tl.program_id(0), tl.cdiv(height, BM), col_tiles, GROUP)
    row = row_first + m * BM
    col = n * BN
    r = row + tl.arange(0, BM)
    place = tl.arange(0, BN)
    c = col + place
    own = tl.load(row_square + r, mask=r < row_last, other=0.0)
    total = tl.zeros((BM, BN), tl.float32)
    for j in range(0, planes):
        s = tile_product(q, k, row, col + j * cols, depth, BM, BN, BK, UP)
        its = tl.load(col_square + j * cols + c, mask=c < cols, other=0.0)
        total += tl.sqrt(tl.maximum(own[:, None] + its[None, :] - 2.0 * s, 0.0))
    lost = tl.load(row_error + r, mask=r < row_last, other=0.0)[:, None]
    lost += tl.load(col_error + c, mask=c < cols, other=0.0)[None, :]
    bound = tl.maximum(total / planes - lost, 0.0)
    packed = (bound.to(tl.int32, bitcast=True) & (-BN)) | place[None, :]
    packed = tl.where((c < cols)[None, :], packed, NONE)
    at = n * height + (r - row_first)
    for i in tl.static_range(KEEP):
        low = tl.min(packed, 1)
        tl.store(out + i * col_tiles * height + at, low, mask=r < row_last)
        packed = tl.where(packed == low[:, None], NONE, packed)


def candidates(problem: Problem, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` smallest lower bounds [R, keep] fp32 in ascending order, and their columns.

    Where there are fewer columns, the rest is infinity and -1.
    """
    if keep > MOST_KEPT:
        return nearest_tiled.candidates(problem, rows, keep)
    tile = SMALL if common.INTERPRETING else TILE
    left, row_square, row_error = rounded(rows - problem.center)
    parts = [rounded(part - problem.center) for part in problem.v]
    right = common.matrix(torch.cat([b for b, _, _ in parts]))
    fixed = {
        "row_square": row_square,
        "row_error": row_error,
        "col_square": torch.cat([square for _, square, _ in parts]),
        "col_error": torch.stack([error for _, _, error in parts]).mean(0),
        "cols": problem.count,
        "planes": len(parts),
        "q": common.descriptor(common.matrix(left), tile.rows, tile.depth),
        "k": common.descriptor(right, tile.cols, tile.depth),
        "depth": right.shape[1],
    }
    bounds = torch.full((len(rows), keep), torch.inf, device=rows.device)
    index = torch.full((len(rows), keep), -1, dtype=torch.int64, device=rows.device)
    _, col_tiles = tile.counts(0, problem.count)
    height = min(common.CHUNK_ROWS, common.chunk_rows(col_tiles, keep, 4, tile, len(rows)))
    for first in range(0, len(rows), height):
        last = min(first + height, len(rows))
        row_tiles, _ = tile.counts(last - first, 0)
        shape = (keep, col_tiles, last - first)
        packed = torch.empty(shape, dtype=torch.int32, device=rows.device)
        args = {**fixed, "row_first": first, "row_last": last, "out": packed}
        common.launch(candidates_kernel, row_tiles * col_tiles, tile, args, KEEP=keep)
        bounds[first:last], index[first:last] = smallest(packed, tile.cols)
    return bounds, index


def rounded(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n, d] in bf16; [n] its squared lengths, less what products may lose; [n] lengths of errors.

    The loss of a squared distance by fp32 accumulation in any order is at most slack * (|b|^2 +
    |b'|^2); the errors include that of the subtraction of the centre.
    """
    half = x.to(torch.bfloat16)
    slack = 8 * (x.shape[1] + 8) * torch.finfo(torch.float32).eps / 2
    square, error = [], []
    for i in range(0, len(x), 16384):
        part, b = x[i : i + 16384].double(), half[i : i + 16384].double()
        square.append(b.square().sum(1) * (1 - slack))
        error.append((part - b).norm(dim=1) + part.norm(dim=1) * 2.0**-22)
    empty = x.new_empty(0)
    return half, torch.cat([empty, *square]).float(), torch.cat([empty, *error]).float()


def smallest(packed: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(bounds [R, keep] ascending, columns) from packed [keep, column tiles, R] words."""
    keep, tiles, rows = packed.shape
    words, found = packed.view(-1, rows).t().topk(keep, dim=1, largest=False)
    column = (found % tiles) * width + (words & (width - 1))
    bound = (words & -width).view(torch.float32)
    missing = words == NONE.value
    return bound.masked_fill(missing, torch.inf), column.masked_fill(missing, -1)
