"""Exact nearest columns by the mean over K modalities of distances, without the distance matrix.

COX (Huang et al., ICLR 2025, sec. 3.4) anchors an out-of-modal sample z at the in-modal sample i
with the smallest (1/K) sum_k |z - v_{k,i}|. The mean of distances is no distance, so indexes per
modality do not find it: all columns are looked at, as matrix products, which bound every mean from
below; the few columns that may be nearest are then measured by differences.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.kernels.dispatch import Concrete, Impl, choose
from outmodal.models.kernels.nearest_reference import nearest_reference
from outmodal.models.kernels.nearest_tiled import MARGIN, Problem, sweep

# Columns kept beside the k wanted ones: enough that hardly any row needs a second look.
SPARE = 3
# Pairs measured at a time, in numbers of fp64.
PAIR_NUMBERS = 2**21


def nearest(
    z: Tensor,
    v: Sequence[Tensor],
    *,
    k: int = 1,
    tile: tuple[int, int] | None = None,
    impl: Impl = "auto",
    offset: int = 0,
    names: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """The k columns of smallest mean distance for every row; exact for any tile.

    Distances are taken from differences in fp64 and rounded to the result's type; the order is by
    that, then by index. So the results of parts of the columns, or of the rows, are those of the
    whole: see `merge_nearest`. No gradient.

    Args:
        z: [N, d] rows.
        v: K tensors [M, d], column i of all of them being one thing; M may be 0.
        k: How many.
        tile: Rows and columns worked on at a time; memory is two such tiles. None: by device.
        impl: "reference" holds all differences; the others differ in how they bound them.
        offset: Added to indices: the first column's place in a larger set.
        names: Of the K modalities, for errors.

    Returns:
        distance [N, k] in fp32 (fp64 for fp64), ascending, and index [N, k] int64. Beyond the
        number of columns: infinity and -1.

    Raises:
        UserError: Shapes that differ, k < 1, or entries that are not finite.
    """
    names = tuple(names) or tuple(f"{i}" for i in range(len(v)))
    _check(z, v, k, names, tile)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        dtype = torch.promote_types(z.dtype, torch.float32)
        z, v = z.detach().to(dtype), [part.detach().to(dtype) for part in v]
        how = choose(impl, z, *v)
        if how == "reference" or not len(v[0]) or not len(z):
            distance, index = nearest_reference(z, v, k)
        else:
            distance, index = _tiled(Problem.of(z, v, tile), k, how)
        distance, index = merge_nearest([_padded(distance, index, k)])
        return distance, torch.where(index < 0, index, index + offset)


def merge_nearest(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The nearest of the union from the nearest of disjoint sets of columns, in any order.

    Args:
        parts: (distance [N, k], index [N, k]) of the same rows, with distinct indices.

    Returns:
        (distance [N, k], index [N, k]), as `nearest` on all columns would have found.
    """
    k = parts[0][0].shape[1]
    distance = torch.cat([d for d, _ in parts], 1)
    index = torch.cat([i for _, i in parts], 1)
    # What is not there comes last: infinite distances tie with one another only.
    by_index = index.sort(dim=1, stable=True).indices
    distance, index = distance.gather(1, by_index), index.gather(1, by_index)
    order = distance.sort(dim=1, stable=True).indices[:, :k]
    return distance.gather(1, order), index.gather(1, order)


def _padded(distance: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    more = k - distance.shape[1]
    pad = torch.nn.functional.pad
    return pad(distance, (0, more), value=torch.inf), pad(index, (0, more), value=-1)


def _tiled(problem: Problem, k: int, how: Concrete) -> tuple[Tensor, Tensor]:
    """Bounds first, then measurements: see the module."""
    # Triton is optional: its file is imported where it was chosen.
    primitives = importlib.import_module(f"outmodal.models.kernels.nearest_{how}")
    k = min(k, problem.count)
    keep = min(k + SPARE, problem.count)
    bound, column = primitives.candidates(problem, problem.z, keep)
    rows = torch.arange(len(bound), device=bound.device)
    distance = measure(problem, rows.repeat_interleave(k), column[:, :k].flatten()).view(-1, k)
    best = Best(distance, column[:, :k].clone())
    limit = distance.amax(1)
    near = bound * (1 - MARGIN) <= limit[:, None]
    unsure = near[:, -1].clone() if keep < problem.count else torch.zeros_like(near[:, -1])
    near[:, :k] = False
    near &= ~unsure[:, None]
    if bool(near.any()):
        row, place = near.nonzero().unbind(1)
        best.add(problem, row, column[row, place])
    if bool(unsure.any()):
        _again(problem, unsure.nonzero()[:, 0], limit, best)
    return best.distance, best.index


def _again(problem: Problem, rows: Tensor, limit: Tensor, best: Best) -> None:
    """Measure all columns whose bound allows a distance up to limit [N], for some rows.

    For rows with many columns at nearly the same distance, duplicates for instance.
    """
    best.distance[rows] = torch.inf
    best.index[rows] = -1

    def take(i: slice, first: int, bounds: Tensor) -> None:
        near = bounds * (1 - MARGIN) <= limit[rows[i], None]
        row, place = near.nonzero().unbind(1)
        best.add(problem, rows[i][row], place + first)

    sweep(problem, problem.z[rows], take)


class Best:
    """The nearest so far: distance [N, k] and index [N, k], ordered by distance, then index."""

    def __init__(self, distance: Tensor, index: Tensor) -> None:
        self.distance, self.index = merge_nearest([(distance, index)])

    def add(self, problem: Problem, rows: Tensor, columns: Tensor) -> None:
        """Measure pairs that were not added before, and keep what is nearer."""
        k = self.distance.shape[1]
        step = max(1, PAIR_NUMBERS // problem.z.shape[1])
        for i in range(0, len(rows), step):
            row, column = rows[i : i + step], columns[i : i + step]
            touched = torch.unique_consecutive(row)  # the rows come sorted
            row = torch.cat([row, touched.repeat_interleave(k)])
            distance = measure(problem, row[: len(column)], column)
            distance = torch.cat([distance, self.distance[touched].flatten()])
            column = torch.cat([column, self.index[touched].flatten()])
            order = _lexicographic(row, distance, column)
            row, distance, column = row[order], distance[order], column[order]
            start = torch.searchsorted(row, touched)
            place = start[:, None] + torch.arange(k, device=row.device)
            self.distance[touched], self.index[touched] = distance[place], column[place]


def _lexicographic(*keys: Tensor) -> Tensor:
    """Order by the first key, then the second, and so on."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].sort(stable=True).indices]
    return order


def measure(problem: Problem, rows: Tensor, columns: Tensor) -> Tensor:
    """[P] mean distances of pairs (row, column), from differences in fp64, rounded at the end."""
    out = torch.empty(len(rows), dtype=problem.z.dtype, device=rows.device)
    step = max(1, PAIR_NUMBERS // problem.z.shape[1])
    for i in range(0, len(rows), step):
        row, column = rows[i : i + step], columns[i : i + step]
        z = problem.z[row].double()
        total = z.new_zeros(len(z))
        for part in problem.v:
            total += torch.linalg.vector_norm(z - part[column].double(), dim=1)
        out[i : i + step] = total / len(problem.v)
    return out


def _check(
    z: Tensor,
    v: Sequence[Tensor],
    k: int,
    names: Sequence[str],
    tile: tuple[int, int] | None,
) -> None:
    if k < 1:
        raise UserError(f"nearest: k must be at least 1, got {k}")
    if tile is not None and min(tile) < 1:
        raise UserError(f"nearest: tile must be two positive numbers, got {tile}")
    if not v:
        raise UserError("nearest: there are no modalities to measure distances to; give at least 1")
    if len(names) != len(v):
        raise UserError(f"nearest: {len(names)} names ({', '.join(names)}) for {len(v)} modalities")
    for part, name in zip(v, names, strict=True):
        if part.dim() != 2 or part.shape[1] != z.shape[1] or part.shape != v[0].shape:
            raise UserError(
                f"nearest: modality '{name}' has shape {list(part.shape)}, expected "
                f"[{len(v[0])}, {z.shape[1]}]: the same rows in every modality, and the rows' width"
            )
    for t, name in zip((z, *v), ("rows", *names), strict=True):
        if not bool(torch.isfinite(t.sum())) and not bool(torch.isfinite(t).all()):
            raise UserError(
                f"nearest: modality '{name}' has NaN or infinite entries; find the sample that "
                "gives them, or drop such rows before"
            )
