"""One-against-all sums and gradients in Triton.

The primitives and their meaning are those of `ova_tiled`; see there for the three forms. Tiles of
the products with all J planes are made and used up in one program: no plane of products is ever
stored, except the gradient's, in chunks of rows that matrix products then use up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from outmodal.models.kernels import common_triton as common
from outmodal.models.kernels import ova_kernels_triton as kernels
from outmodal.models.kernels.common_triton import Tile, Walk, zeros
from outmodal.models.kernels.nce_tiled import Sums
from outmodal.models.kernels.ova_tiled import Form

FORMS: dict[Form, int] = {"projection": 0, "volume": 1, "area": 2}
# Bytes of a number -> tile of the sums. Chosen by counting registers, to be refined on a GPU.
SUM_TILES = {
    2: Tile(128, 128, 64, warps=8, stages=3),
    4: Tile(128, 128, 32, warps=8, stages=3),
}
# Columns of the gradient's tile, (up to this J, columns): J tiles of products stay in registers.
GRADIENT_COLUMNS: dict[Form, list[tuple[int, int]]] = {
    "projection": [(4, 64), (5, 32)],
    "volume": [(3, 64), (5, 32)],
    "area": [(2, 64)],
}
SMALL = Tile(64, 64, 64, warps=4, stages=2)


def tiles(operand: Tensor, planes: int, form: Form) -> tuple[Tile, Tile]:
    """(tile of the sums, tile of the gradient) for an operand [n, d] against J planes."""
    if common.INTERPRETING:
        return SMALL, SMALL
    tile = SUM_TILES[operand.element_size()]
    columns = next(cols for most, cols in GRADIENT_COLUMNS[form] if planes <= most)
    return tile, replace(tile, cols=columns)


def walk_of(
    z: Tensor, basis: Tensor, partner: int, row_live: Tensor | None, col_live: Tensor | None
) -> tuple[Walk, Tensor]:
    """The launches' common part, and the planes [J, C, d] in z's type."""
    planes = basis.to(z.dtype).contiguous()
    flat = planes.view(-1, planes.shape[2])
    return Walk(z, flat, basis.shape[1], partner, row_live, col_live), planes


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
        z: [R, d] rows, bf16, fp16 or fp32.
        basis: [J, C, d], J from 1 to 5 (2 for the area); used in z's type.
        gain: [C], for volume and area; else None.
        scale, shift: One element each, fp32.
        partner: Row r's own column is r + partner.
        row_live, col_live: [R] and [C] bool, or None where all are.
        form: The score.
        totals: Also sum the logits themselves.
    """
    walk, planes = walk_of(z, basis, partner, row_live, col_live)
    tile, _ = tiles(walk.left, len(basis), form)
    constants = {"J": len(basis), "FORM": FORMS[form], "TOTALS": totals}
    row, row_total = zeros(z), zeros(z)
    col, col_total = zeros(planes[0]), zeros(planes[0])
    args = {"scale": scale, "shift": shift, "gain": gains(gain, col)}
    for first, last in walk.chunks(common.CHUNK_ROWS):
        row_part, col_part = walk.parts(tile, first, last)
        more = walk.parts(tile, first, last) if totals else (row_part, col_part)
        own = {"row_out": row_part, "col_out": col_part}
        own |= {"row_total": more[0], "col_total": more[1]}
        walk.launch(kernels.sums_kernel, tile, first, last, args | own, **constants)
        row[first:last] = row_part.sum(0)
        col += col_part.sum(0)
        if totals:
            row_total[first:last] = more[0].sum(0)
            col_total += more[1].sum(0)
    return Sums(row, col, row_total, col_total) if totals else Sums(row, col, None, None)


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
    *,
    chunk_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dz [R, d], dbasis [J, C, d] and dgain [C] (None for the projection), all fp32.

    For the gradient by the logits G = exp(logit - shift) * (row_coef + col_coef) + row_const +
    col_const on live entries off the partner diagonal, diag on it, zero elsewhere; row_* and diag
    are [R], col_* [C], None is zero. chunk_dtype: what the gradient by the products is stored in
    (bf16 for half inputs; fp32 is twice as exact and several times as slow).
    """
    walk, planes = walk_of(z, basis, partner, row_live, col_live)
    constants = {"J": len(basis), "FORM": FORMS[form]}
    constants["CONSTANTS"] = row_const is not None or col_const is not None
    # The scale is folded into the coefficients: no pass over the results for it.
    args = {"scale": scale, "shift": shift, "gain": gains(gain, zeros(planes[0]))}
    args |= {"diag": diag * scale}
    for name, t, like in (
        ("row_coef", row_coef, z),
        ("col_coef", col_coef, planes[0]),
        ("row_const", row_const, z),
        ("col_const", col_const, planes[0]),
    ):
        args[name] = zeros(like) if t is None else t * scale
    _, tile = tiles(walk.left, len(basis), form)
    dz, dbasis, dgain = products(tile, walk, z, planes, args, constants, chunk_dtype)
    return dz, dbasis, None if gain is None else dgain


def products(
    tile: Tile,
    walk: Walk,
    z: Tensor,
    planes: Tensor,
    args: dict[str, Tensor],
    constants: dict[str, Any],
    chunk_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dz, dbasis, dgain) with the gradient by the J products written in chunks of rows."""
    dtype = chunk_dtype or common.gradient_dtype(z.dtype)
    dz, dgain = zeros(z, z.shape[1]), zeros(planes[0])
    dbasis = torch.zeros(planes.shape, dtype=torch.float32, device=z.device)
    stride = common.padded(walk.cols)
    height = common.chunk_rows(stride, len(planes), dtype.itemsize, tile, walk.rows)
    chunk = torch.empty(len(planes), height, stride, dtype=dtype, device=z.device)
    for first, last in walk.chunks(height):
        _, gain_part = walk.parts(tile, first, last)
        own = {
            "out": common.descriptor(chunk.view(-1, stride), tile.rows, tile.cols),
            "gain_out": gain_part,
            "plane_rows": height,
        }
        walk.launch(kernels.gradient_kernel, tile, first, last, args | own, **constants)
        for j, plane in enumerate(planes):
            g = chunk[j, : last - first, : walk.cols]
            common.add_product(dz[first:last], g, plane, first=j == 0)
            common.add_product(dbasis[j], g.t(), z[first:last], first=first == 0)
        if constants["FORM"]:
            dgain += gain_part.sum(0)
    return dz, dbasis, dgain


def gains(gain: Tensor | None, like: Tensor) -> Tensor:
    """[C] fp32; unread ones for None."""
    return torch.ones_like(like) if gain is None else gain.float().contiguous()
