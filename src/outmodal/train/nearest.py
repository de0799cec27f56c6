"""Exact nearest columns for the rows of a whole split, the rows shared out over the ranks.

No rank ever holds the matrix of distances: a rank searches for its own stretch of the rows, and
brings the columns to its device a block at a time (Huang et al., ICLR 2025, sec. 3.4, needs the
nearest in-modal sample of every out-of-modal one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from outmodal.models.kernels.nearest import merge_nearest, nearest
from outmodal.train import gather

Aggregate = Literal["mean_norm", "rms"]
"""Over K modalities: the mean of the K distances, or the root of their mean square."""

BLOCK = 65_536  # columns on the device at a time
ROWS = 65_536  # rows on the device at a time


def nearest_over_ranks(
    z: Tensor,
    v: Sequence[Tensor],
    *,
    aggregate: Aggregate = "mean_norm",
    tile: tuple[int, int] | None = None,
    block: int = BLOCK,
    names: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """The nearest column of every row: the same for any tile, block and number of ranks.

    Collective. All ranks give the same tensors, on the CPU, and get the same result.

    Args:
        z: [N, d] rows.
        v: K tensors [M, d]; column i of all of them is one thing.
        aggregate: How the K distances become one. "rms" is the distance of concatenated vectors
            over sqrt(K): one product instead of K, but another order.
        tile: Rows and columns of a tile of the kernel, see `kernels.nearest`.
        block: Columns on the device at a time.
        names: Of the K modalities, for errors.

    Returns:
        distance [N] fp32 and index [N] int64 on the CPU, ties going to the smaller index; infinity
        and -1 where there are no columns.

    Raises:
        UserError: Shapes that differ, or entries that are not finite.
    """
    names = tuple(names) or tuple(f"{k}" for k in range(len(v)))
    joined = aggregate == "rms" and len(v) > 1
    scale = len(v) ** 0.5 if joined else 1.0
    own = _own_stretch(len(z))
    parts = [
        _search(z[start : min(start + ROWS, own.stop)], v, tile, block, names, joined)
        for start in range(own.start, own.stop, ROWS)
    ]
    distance = torch.cat([d for d, _ in parts]) if parts else torch.zeros(0)
    index = torch.cat([i for _, i in parts]) if parts else torch.zeros(0, dtype=torch.int64)
    return (
        gather.all_gather_rows(distance / scale).cpu(),
        gather.all_gather_rows(index).cpu(),
    )


def _own_stretch(rows: int) -> slice:
    """This rank's contiguous rows; their order over ranks is that of the rows."""
    world = gather.world()
    edges = [rows * r // world.size for r in (world.rank, world.rank + 1)]
    return slice(*edges)


def _search(
    z: Tensor,
    v: Sequence[Tensor],
    tile: tuple[int, int] | None,
    block: int,
    names: Sequence[str],
    joined: bool,
) -> tuple[Tensor, Tensor]:
    """Nearest of a few rows over all columns, [n] and [n], on the CPU; `joined` concatenates the
    modalities, a block at a time."""
    device = gather.world().device
    rows = z.to(device)
    if joined:
        rows, names = rows.repeat(1, len(v)), ("+".join(names),)
    best: tuple[Tensor, Tensor] | None = None
    for start in range(0, max(len(v[0]), 1), block):
        columns = [part[start : start + block].to(device) for part in v]
        if joined:
            columns = [torch.cat(columns, 1)]
        found = nearest(rows, columns, tile=tile, offset=start, names=names)
        best = found if best is None else merge_nearest([best, found])
    assert best is not None
    return best[0][:, 0].float().cpu(), best[1][:, 0].cpu()
