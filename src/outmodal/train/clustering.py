"""Seeded k-means, and names of clusters that survive from one clustering to the next.

Everything runs in fp64 on the CPU, in chunks, on data that all ranks hold, and the main rank's
result is everyone's: groupings are equal on all ranks and do not depend on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from outmodal.errors import UserError
from outmodal.train import gather

_ROWS = 16_384  # compared with the centres at once


@dataclass(frozen=True)
class Clusters:
    """A grouping of N rows.

    Attributes:
        label: [N] int64 group of each row, 0 .. k - 1.
        centres: [k, d] fp32 mean of each group.
    """

    label: Tensor
    centres: Tensor


@torch.no_grad()
def kmeans(x: Tensor, k: int, seed: int, iterations: int = 100) -> Clusters:
    """Lloyd's algorithm from a seeded k-means++ start (Arthur and Vassilvitskii, SODA 2007).

    A group that loses all rows takes the row that is farthest from its centre. Collective.

    Args:
        x: [N, d], equal on all ranks.
        k: Groups, at most N.
        seed: Of the start.
        iterations: At most so many; fewer where no row moves any more.

    Raises:
        UserError: There are fewer rows than groups.
    """
    if len(x) < k:
        raise UserError(
            f"{len(x)} samples cannot be put into {k} clusters: ask for fewer clusters, or use "
            "more samples"
        )
    rows = x.detach().cpu().double()
    centres = _spread(rows, k, np.random.default_rng([seed, k]))
    label, gap = _nearest(rows, centres)
    for _ in range(iterations):
        centres = _means(rows, label, gap, k)
        moved, gap = _nearest(rows, centres)
        if torch.equal(moved, label):
            break
        label = moved
    found = Clusters(label, centres.float())
    gather.broadcast_tensors([found.label, found.centres])
    return found


def matched(label: Tensor, before: Tensor, k: int) -> Tensor:
    """Rename groups so that as many rows as possible keep the name they had (Hungarian method).

    Args:
        label: [N] new groups, 0 .. k - 1.
        before: [N] earlier names, or true classes, 0 .. k - 1; negative ones do not count.
        k: How many names.

    Returns:
        [N] the new groups under their new names.
    """
    known = before >= 0
    counts = torch.bincount(label[known] * k + before[known], minlength=k * k).view(k, k)
    old, new = linear_sum_assignment(counts.numpy(), maximize=True)
    names = torch.empty(k, dtype=torch.int64)
    names[torch.from_numpy(old)] = torch.from_numpy(np.asarray(new, dtype=np.int64))
    return names[label]


def purity(label: Tensor, truth: Tensor) -> float:
    """Share of rows that have their group's most frequent class, in 0..1; NaN without rows.

    Args:
        label: [N] groups.
        truth: [N] classes, -1 where unknown (such rows do not count).
    """
    known = truth >= 0
    group, real = label[known], truth[known]
    if not len(group):
        return float("nan")
    width = int(real.max()) + 1
    counts = torch.bincount(group * width + real, minlength=width * (int(group.max()) + 1))
    return float(counts.view(-1, width).amax(dim=1).sum()) / len(group)


def _spread(rows: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """Rows that lie apart: each next one is drawn in proportion to its squared distance."""
    chosen = [int(rng.integers(len(rows)))]
    gap = (rows - rows[chosen[0]]).square().sum(dim=1)
    for _ in range(1, k):
        chosen.append(_draw(gap.numpy(), chosen, rng))
        gap = torch.minimum(gap, (rows - rows[chosen[-1]]).square().sum(dim=1))
    return rows[chosen].clone()


def _draw(gap: NDArray[np.float64], chosen: list[int], rng: np.random.Generator) -> int:
    total = float(gap.sum())
    if total > 0:
        return int(rng.choice(len(gap), p=gap / total))
    return int(rng.choice(np.setdiff1d(np.arange(len(gap)), chosen)))  # all rows are alike


def _nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """([N] nearest centre, the lowest of equal ones, [N] squared distance to it)."""
    labels, gaps = [], []
    square = centres.square().sum(dim=1)
    for part in torch.split(rows, _ROWS):
        gap = part.square().sum(dim=1)[:, None] + square - 2 * (part @ centres.T)
        labels.append(gap.argmin(dim=1))
        gaps.append(gap.amin(dim=1).clamp_min(0))
    return torch.cat(labels), torch.cat(gaps)


def _means(rows: Tensor, label: Tensor, gap: Tensor, k: int) -> Tensor:
    """Mean of each group; an empty one takes the farthest row that is left."""
    counts = torch.bincount(label, minlength=k)
    sums = rows.new_zeros(k, rows.shape[1]).index_add_(0, label, rows)
    means = sums / counts.clamp_min(1)[:, None]
    empty = torch.nonzero(counts == 0).flatten()
    farthest = torch.sort(gap, descending=True, stable=True).indices
    means[empty] = rows[farthest[: len(empty)]]
    return means
