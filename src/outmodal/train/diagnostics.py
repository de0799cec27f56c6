"""Numbers that show what a method is doing: discrepancy, agreement, purity, collapse."""

from __future__ import annotations

import torch
from torch import Tensor

from outmodal.models.features import unit_norm


def subsample(t: Tensor, limit: int, seed: int) -> Tensor:
    """At most `limit` rows of `t`, a seeded draw without replacement, in their order."""
    if len(t) <= limit:
        return t
    generator = torch.Generator().manual_seed(seed)
    return t[torch.randperm(len(t), generator=generator)[:limit].sort().values.to(t.device)]


def mmd(a: Tensor, b: Tensor, *, limit: int = 2000, seed: int = 0) -> float:
    """Maximum mean discrepancy with a Gaussian kernel (Gretton et al., JMLR 2012).

    The bandwidth is the median distance within the pooled sample; the biased estimator, which
    is never negative, of at most `limit` rows from each side.

    Args:
        a, b: [N, d], [M, d].
        limit: Rows used from each.
        seed: Of the subsample.

    Returns:
        MMD (not its square). NaN where a side is empty.
    """
    if len(a) == 0 or len(b) == 0:
        return float("nan")
    x, y = subsample(a, limit, seed).float(), subsample(b, limit, seed + 1).float()
    pooled = torch.cat([x, y])
    pooled = pooled - pooled.mean(dim=0)  # distances stay, the rounding of large norms goes
    gaps = torch.cdist(pooled, pooled).square()
    kernel = torch.exp(-gaps / (2 * _median_off_diagonal(gaps)))
    n = len(x)
    squared = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    return float(squared.clamp_min(0).sqrt())


def _median_off_diagonal(gaps: Tensor) -> Tensor:
    n = len(gaps)
    if n < 2:
        return gaps.new_ones(())
    # n off-diagonal entries a row, without the n x n index of a triangle
    rows = gaps.flatten()[1:].view(n - 1, n + 1)[:, :-1]
    return rows.median().clamp_min(1e-12)


def modality_gap(a: Tensor, b: Tensor) -> float:
    """Distance between the means of two modalities' unit vectors, 0..2 (Liang et al., "Mind the
    Gap", NeurIPS 2022).

    Args:
        a, b: [N, d], [M, d], of any length.

    Returns:
        The gap. NaN where a side is empty.
    """
    return float((unit_norm(a.float()).mean(dim=0) - unit_norm(b.float()).mean(dim=0)).norm())


def mean_feature_std(z: Tensor) -> float:
    """Mean over dimensions of the standard deviation over samples: 0 when features collapse."""
    return float(z.float().std(dim=0, unbiased=False).mean()) if len(z) else float("nan")


def accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Share of equal entries among those whose truth is known (>= 0); NaN where none is."""
    known = truth >= 0
    return _mean((predicted == truth)[known])


def top_k_accuracy(logits: Tensor, truth: Tensor, k: int) -> float:
    """Share of rows with a known truth whose `k` largest logits hold it; NaN where none is."""
    known = truth >= 0
    best = logits[known].topk(min(k, logits.shape[1]), dim=1).indices
    return _mean((best == truth[known][:, None]).any(dim=1))


def histogram(label: Tensor, classes: int) -> list[int]:
    """How often each class occurs."""
    return [int(n) for n in torch.bincount(label, minlength=classes)]


def _mean(hits: Tensor) -> float:
    return float(hits.double().mean()) if hits.numel() else float("nan")
