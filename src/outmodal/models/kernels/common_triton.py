"""What the Triton kernels share: launching, tensor descriptors, tile order, number formats.

Only the Triton implementations import this file, and dispatch imports them only when Triton is
chosen: without Triton the package works and this file is never read.

Conventions of every kernel here. Matrices are read through tensor descriptors (the copy engine of
Hopper, plain loads on older GPUs), which read zeros outside: any number of rows and any d, as long
as a row starts at a multiple of 16 bytes (`matrix` pads to that). Tiles of one launch run in an
order that keeps a group of row tiles in the L2 cache. Sums leave a kernel as partial sums of
tiles, never through atomics, so that results repeat bit for bit. Exponentials are exp2 with
log2(e) folded into the scale.

The interpreter (TRITON_INTERPRET=1, read when a kernel is defined) multiplies the bits of bf16
numbers as if they were integers; UP makes a kernel cast what it loads to fp32 first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2E = 1.4426950408889634
# Rows of partial sums and gradient entries held at a time.
CHUNK_ROWS = 8192
CHUNK_BYTES = 256 * 2**20
# The same reading of the variable as Triton's own, at the time the kernels are defined.
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
Half = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tile:
    """A tile of the product and how a program computes it: rows, columns, depth of one step."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int
    group: int = 8

    def counts(self, rows: int, cols: int) -> tuple[int, int]:
        """Tiles over rows and over columns."""
        return -(-rows // self.rows), -(-cols // self.cols)


@dataclass(frozen=True)
class Launch:
    """One recorded kernel launch: what the audit compiles."""

    kernel: Any
    args: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    stages: int


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches instead of running them (results are then undefined), for the audit."""
    global _recorded
    assert _recorded is None, "recording does not nest"
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


def jit(function: Callable[..., Any]) -> Any:
    """triton.jit, typed."""
    return triton.jit(function)


def launch(kernel: Any, grid: int, tile: Tile, args: dict[str, Any], **constants: Any) -> None:
    """Run `kernel` on `grid` programs, with arguments by name."""
    constants |= {"BM": tile.rows, "BN": tile.cols, "BK": tile.depth, "GROUP": tile.group}
    constants["UP"] = INTERPRETING
    if _recorded is not None:
        args = {name: args[name] for name in kernel.arg_names if name in args}
        _recorded.append(Launch(kernel, args, constants, tile.warps, tile.stages))
        return
    where = next(value for value in args.values() if isinstance(value, Tensor))
    # Triton launches on the current device.
    with torch.cuda.device_of(where):  # type: ignore[no-untyped-call]
        kernel[(grid,)](**args, **constants, num_warps=tile.warps, num_stages=tile.stages)


def matrix(t: Tensor) -> Tensor:
    """[n, d] with rows that start at multiples of 16 bytes: itself, or a copy padded by zeros."""
    unit = 16 // t.element_size()
    if t.shape[1] % unit:
        t = F.pad(t, (0, unit - t.shape[1] % unit))
    t = t if t.stride(1) == 1 and t.stride(0) % unit == 0 else t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def descriptor(t: Tensor, rows: int, cols: int) -> TensorDescriptor:
    """What a kernel loads [rows, cols] blocks of a `matrix` through."""
    return TensorDescriptor(t, list(t.shape), list(t.stride()), [rows, cols])


def tf32(t: Tensor) -> Tensor:
    """fp32 rounded to the nearest number with 10 bits of fraction, ties away from zero.

    Matrix instructions drop the low 13 bits of what they read; rounding first keeps the error
    without a bias (truncation costs a hundred times and more in the loss). Finite numbers only.
    """
    return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def operands(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of a product of similarities, ready for the kernels.

    Half precision is taken as it is. fp32 follows torch.get_float32_matmul_precision(): "highest"
    (PyTorch's default) splits each number into two tf32 numbers and keeps three of the four
    products, by tripling d; otherwise numbers are rounded to tf32. Different types: the wider.
    """
    dtype = torch.promote_types(left.dtype, right.dtype)
    if INTERPRETING:  # it multiplies fp32 exactly
        dtype = torch.float32 if dtype is torch.float64 else dtype
    left, right = left.to(dtype), right.to(dtype)
    assert dtype in (*Half, torch.float32), dtype
    if dtype in Half or INTERPRETING:
        return matrix(left), matrix(right)
    high, high_right = tf32(left), tf32(right)
    if torch.get_float32_matmul_precision() != "highest":
        return matrix(high), matrix(high_right)
    low, low_right = tf32(left - high), tf32(right - high_right)
    return (
        matrix(torch.cat([high, high, low], 1)),
        matrix(torch.cat([high_right, low_right, high_right], 1)),
    )


class Walk:
    """Rows [R, d] against columns [C, d]: what all launches over chunks of the rows share.

    Args:
        q, k: Rows and columns, bf16, fp16 or fp32; k may hold several planes of C columns.
        cols: C.
        partner: Row r pairs with column r + partner.
        row_live, col_live: bool, or None where all are live.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        cols: int,
        partner: int,
        row_live: Tensor | None,
        col_live: Tensor | None,
    ) -> None:
        assert not any(t.is_cpu for t in (q, k)) or INTERPRETING or _recorded is not None, (
            "Triton kernels need CUDA tensors; on the CPU only TRITON_INTERPRET=1 runs them"
        )
        self.rows, self.cols, self.partner = len(q), cols, partner
        self.left, self.right = operands(q, k)
        self.masked = row_live is not None or col_live is not None
        self.row_live, self.col_live = alive(row_live, q), alive(col_live, k)

    def chunks(self, height: int) -> Iterator[tuple[int, int]]:
        """(first, last) rows of each chunk of at most `height` rows; none where C is 0."""
        for first in range(0, self.rows if self.cols else 0, height):
            yield first, min(first + height, self.rows)

    def parts(self, tile: Tile, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Room for partial sums of rows [column tiles, last - first] and columns [row tiles, C]."""
        row_tiles, col_tiles = tile.counts(last - first, self.cols)
        row = self.left.new_empty(col_tiles, last - first, dtype=torch.float32)
        return row, self.left.new_empty(row_tiles, self.cols, dtype=torch.float32)

    def launch(
        self, kernel: Any, tile: Tile, first: int, last: int, args: dict[str, Any], **constants: Any
    ) -> None:
        """Run `kernel`, a program a tile, on rows [first, last)."""
        args = args | {
            "q": descriptor(self.left, tile.rows, tile.depth),
            "k": descriptor(self.right, tile.cols, tile.depth),
            "row_live": self.row_live,
            "col_live": self.col_live,
            "row_first": first,
            "row_last": last,
            "cols": self.cols,
            "depth": self.left.shape[1],
            "partner": self.partner,
        }
        grid = math.prod(tile.counts(last - first, self.cols))
        launch(kernel, grid, tile, args, MASKED=self.masked, **constants)


def alive(live: Tensor | None, like: Tensor) -> Tensor:
    """A mask as the kernels read it."""
    if live is None:
        return torch.ones(len(like), dtype=torch.uint8, device=like.device)
    return live.contiguous().view(torch.uint8)


def zeros(like: Tensor, *width: int) -> Tensor:
    """[n, *width] fp32 zeros, n as in `like`."""
    return torch.zeros(len(like), *width, dtype=torch.float32, device=like.device)


def add_product(out: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """out (+)= left @ right in fp32, whatever the factors' type. first: overwrite out."""
    if left.dtype == torch.float32:
        right = right.float()
        torch.mm(left, right, out=out) if first else out.addmm_(left, right)
    elif left.is_cuda and hasattr(torch.ops.aten.addmm, "dtype_out"):
        right = right.to(left.dtype)
        torch.addmm(out, left, right, beta=0 if first else 1, out_dtype=torch.float32, out=out)
    else:  # elsewhere no product of halves leaves fp32: the factors are widened, exactly
        add_product(out, left.float(), right, first=first)


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """What gradient chunks are stored in: bf16 for half inputs (fp16 would underflow)."""
    return torch.bfloat16 if dtype in Half else torch.float32


def padded(cols: int) -> int:
    """Row stride of a gradient chunk: rows start at multiples of 128 bytes."""
    return -(-max(cols, 1) // 64) * 64


def chunk_rows(cols: int, planes: int, itemsize: int, tile: Tile, rows: int) -> int:
    """Rows of a gradient chunk of at most CHUNK_BYTES, a multiple of the tile's rows."""
    fitting = CHUNK_BYTES // max(1, cols * planes * itemsize)
    whole = max(1, fitting // tile.rows) * tile.rows
    return min(whole, -(-max(rows, 1) // tile.rows) * tile.rows)


@jit
def tile_of(
    program: tl.tensor, row_tiles: tl.tensor, col_tiles: tl.tensor, GROUP: tl.constexpr
) -> tl.tensor:
    """(row tile, column tile) of a program: down a group of row tiles, then along the columns."""
    per_group = GROUP * col_tiles
    first = (program // per_group) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    inside = program % per_group
    return first + inside % height, inside // height


@jit
def tile_product(
    left: tl.tensor,
    right: tl.tensor,
    row: tl.tensor,
    col: tl.tensor,
    depth: tl.tensor,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UP: tl.constexpr,
) -> tl.tensor:
    """[BM, BN] of left[row:] @ right[col:]^T, fp32."""
    out = tl.zeros((BM, BN), tl.float32)
    for start in range(0, depth, BK):
        a = left.load([row, start])
        b = right.load([col, start])
        if UP:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        out = tl.dot(a, b.T, out)
    return out
