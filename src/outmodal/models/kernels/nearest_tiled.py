"""Lower bounds of mean distances tile by tile, and the columns where they are smallest.

Distances come from one matrix product: with rows [-2 z, |z|^2 - slack, 1] and columns
[v, 1, |v|^2] it yields |z - v|^2 - slack, where slack bounds the product's rounding error. So what
is found is never above the exact distance, and a column that is not kept is known to be no nearer
than the last one that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_TILE = (512, 4096)
DEVICE_TILE = (8192, 16384)
# Columns whose minimum is looked at first when the smallest of a tile are picked.
STRIDE = 32
# Rounding of the roots and of the mean, relative.
MARGIN = 1e-6


@dataclass(frozen=True)
class Problem:
    """Rows z [N, d] against columns v, K x [M, d]; all of one floating dtype of 32 or 64 bits.

    center [d] is subtracted from both (no distance changes, cancellation does); reach is the
    largest length of a centred column.
    """

    z: Tensor
    v: Sequence[Tensor]
    center: Tensor
    reach: Tensor
    tile: tuple[int, int]

    @classmethod
    def of(cls, z: Tensor, v: Sequence[Tensor], tile: tuple[int, int] | None) -> Problem:
        center = torch.stack([part.mean(0) for part in v]).mean(0)
        reach = z.new_zeros(())
        for part in v:
            for i in range(0, len(part), 16384):
                lengths = torch.linalg.vector_norm(part[i : i + 16384] - center, dim=1)
                reach = torch.maximum(reach, lengths.amax())
        default = CPU_TILE if z.device.type == "cpu" else DEVICE_TILE
        return cls(z, v, center, reach, tile or default)

    @property
    def count(self) -> int:
        return len(self.v[0])

    def left(self, rows: Tensor) -> Tensor:
        """[r, d + 2] of rows [r, d]."""
        x = rows - self.center
        square = x.double().square().sum(1, keepdim=True)
        slack = self.rounding() * (square.sqrt() + self.reach).square()
        ones = torch.ones_like(square)
        return torch.cat([-2 * x, (square - slack).to(x.dtype), ones.to(x.dtype)], 1)

    def right(self, columns: slice) -> list[Tensor]:
        """K x [c, d + 2]."""
        out = []
        for part in self.v:
            x = part[columns] - self.center
            square = x.double().square().sum(1, keepdim=True)
            out.append(torch.cat([x, torch.ones_like(x[:, :1]), square.to(x.dtype)], 1))
        return out

    def rounding(self) -> float:
        """Bound of the error of a squared distance, relative to (|z| + |v|)^2.

        That of a sum of d + 2 rounded products in any order, doubled; where the backend may round
        the factors of fp32 products, that too.
        """
        unit = torch.finfo(self.z.dtype).eps / 2
        own = 2 * (self.z.shape[1] + 8) * unit
        if self.z.dtype is torch.float64 or not _rounds_factors(self.z.device):
            return own
        return own + 2.0**-7


def _rounds_factors(device: torch.device) -> bool:
    """Whether fp32 products may be taken in tf32 or bf16 here."""
    if torch.get_float32_matmul_precision() != "highest":
        return True
    return device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32


def candidates(problem: Problem, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` smallest lower bounds [R, keep] in ascending order, and their columns.

    Where there are fewer columns, the rest is infinity and -1.
    """
    size = (len(rows), keep)
    best = torch.full(size, torch.inf, dtype=rows.dtype, device=rows.device)
    index = torch.full(size, -1, dtype=torch.int64, device=rows.device)

    def take(i: slice, first: int, bounds: Tensor) -> None:
        value, column = _smallest(bounds, min(keep, bounds.shape[1]))
        value = torch.cat([best[i], value], 1)
        column = torch.cat([index[i], column + first], 1)
        found = value.topk(keep, dim=1, largest=False)
        best[i], index[i] = found.values, column.gather(1, found.indices)

    sweep(problem, rows, take)
    return best, index


def sweep(problem: Problem, rows: Tensor, take: Callable[[slice, int, Tensor], None]) -> None:
    """Call take(rows of the tile, first column, lower bounds [r, c]) for every tile.

    The bounds are in a buffer that the next tile overwrites.
    """
    high, wide = problem.tile
    shape = (min(high, len(rows)), min(wide, problem.count))
    total, part = (rows.new_empty(shape[0] * shape[1]) for _ in range(2))
    for first in range(0, problem.count, wide):
        right = problem.right(slice(first, first + wide))
        for i in _slices(len(rows), high):
            left = problem.left(rows[i])
            out = [t[: len(left) * len(right[0])].view(len(left), -1) for t in (total, part)]
            take(i, first, _mean_bounds(left, right, out[0], out[1]))


def _mean_bounds(left: Tensor, right: list[Tensor], total: Tensor, part: Tensor) -> Tensor:
    """[r, c] means over K of roots of the products, in `total`."""
    torch.mm(left, right[0].T, out=total).clamp_(min=0).sqrt_()
    for columns in right[1:]:
        total.add_(torch.mm(left, columns.T, out=part).clamp_(min=0).sqrt_())
    return total.div_(len(right)) if len(right) > 1 else total


def _slices(count: int, size: int) -> Iterator[slice]:
    for i in range(0, count, size):
        yield slice(i, min(i + size, count))


def _smallest(x: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` smallest of every row of x [r, c] and their columns, in any order.

    Columns are taken in groups; the smallest lie in the `keep` groups of the smallest minima, so
    that few numbers have to be sorted.
    """
    groups = x.shape[1] // STRIDE
    if groups < 2 * keep:
        found = x.topk(keep, dim=1, largest=False, sorted=False)
        return found.values, found.indices
    whole = groups * STRIDE
    grouped = x[:, :whole].view(len(x), STRIDE, groups)
    nearest = grouped.amin(1).topk(keep, dim=1, largest=False, sorted=False).indices
    place = torch.arange(STRIDE, device=x.device)[None, :, None] * groups + nearest[:, None, :]
    place = place.flatten(1)
    if whole < x.shape[1]:
        tail = torch.arange(whole, x.shape[1], device=x.device).expand(len(x), -1)
        place = torch.cat([place, tail], 1)
    found = x.gather(1, place).topk(keep, dim=1, largest=False, sorted=False)
    return found.values, place.gather(1, found.indices)
