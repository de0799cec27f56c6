"""Deterministic choices over a whole split: labelled draws, agreement, global top-k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.errors import UserError

_DRAW_SALT = 0x1ABE1  # keeps the labelled draw apart from other uses of the run's seed


def mix_seeds(*numbers: int) -> int:
    """One seed below 2^63 from several non-negative integers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def labelled_draw(
    labels: NDArray[np.int64],
    fraction: float,
    seed: int,
    classes: Sequence[str],
    *,
    balanced: bool = True,
) -> NDArray[np.int64]:
    """Choose the samples whose labels a method may use.

    Args:
        labels: [N] class of each sample, -1 where it has none.
        fraction: Share of the samples with a label to draw, in (0, 1].
        seed: Decides the draw; the same seed gives the same set to every method.
        classes: Class names in label order.
        balanced: The same number from each class, at least one; a class with too few gives all
            it has and the others fill up. False: uniform over samples.

    Returns:
        Sorted indices.

    Raises:
        UserError: The fraction gives no sample, or (balanced) a class has none with a label.
    """
    candidates = np.flatnonzero(labels >= 0)
    wanted = round(fraction * len(candidates))
    if wanted < 1:
        raise UserError(
            f"method.label_fraction {fraction} of {len(candidates)} labelled training samples "
            "gives none: raise it, or use a larger data set"
        )
    rng = np.random.default_rng([seed, _DRAW_SALT])
    shuffled = rng.permutation(candidates)
    if not balanced:
        return np.sort(shuffled[:wanted])
    counts = np.bincount(labels[candidates], minlength=len(classes))
    empty = [name for name, n in zip(classes, counts, strict=True) if n == 0]
    if empty:
        raise UserError(
            f"no training sample of class {', '.join(repr(c) for c in empty)} has a label, so a "
            "class-balanced draw is impossible: add samples, remove the class from the data set, "
            "or set method.label_draw uniform"
        )
    quota = _balanced_quota(counts, max(wanted, len(classes)), rng.permutation(len(classes)))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.cumsum(counts) - counts
    parts = [grouped[s : s + n] for s, n in zip(starts, quota, strict=True)]
    return np.sort(np.concatenate(parts))


def _balanced_quota(
    counts: NDArray[np.int64], total: int, order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Split `total` over classes as evenly as `counts` allow; `order` breaks the last ties."""
    quota = np.zeros_like(counts)
    left = min(total, int(counts.sum()))
    while left > 0:
        open_classes = [c for c in order if quota[c] < counts[c]]
        share = left // len(open_classes)
        if share == 0:
            quota[open_classes[:left]] += 1
            return quota
        for c in open_classes:
            add = min(share, int(counts[c] - quota[c]))
            quota[c] += add
            left -= add
    return quota


def stratified(
    labels: NDArray[np.int64], fraction: float, seed: int, leave: int = 0
) -> NDArray[np.int64]:
    """Sorted indices of a seeded draw of this share of each class, at least one of each.

    Args:
        labels: [N] classes, -1 where there is none; such samples are not drawn.
        fraction: Share of each class.
        seed: Decides the draw.
        leave: Samples of each class that are not drawn, even if none is drawn then.
    """
    order = np.random.default_rng([seed, len(labels)]).permutation(len(labels))
    parts = [np.zeros(0, dtype=np.int64)]
    for c in np.unique(labels[labels >= 0]):
        mine = order[labels[order] == c]
        parts.append(mine[: min(max(1, round(fraction * len(mine))), len(mine) - leave)])
    return np.sort(np.concatenate(parts))


def agreement(predictions: Tensor) -> Tensor:
    """Where all judges say the same class: [K, N] classes -> [N] bool."""
    return (predictions == predictions[0]).all(dim=0)


def top_k(score: Tensor, k: int, keys: Tensor) -> Tensor:
    """Positions of the `k` largest scores, ties broken by the smaller key, NaN last.

    Args:
        score: [N].
        k: How many; all where there are fewer.
        keys: [N] distinct integers, a sample's index for instance.

    Returns:
        Positions, best first.
    """
    by_key = torch.argsort(keys)
    clean = torch.nan_to_num(score.float(), nan=-torch.inf, neginf=-torch.inf, posinf=torch.inf)
    order = torch.sort(clean[by_key], descending=True, stable=True).indices
    return by_key[order[:k]]


def top_k_quota(score: Tensor, k: int, keys: Tensor, label: Tensor, limit: int) -> Tensor:
    """`top_k` in which no label takes more than `limit` places."""
    order = top_k(score, len(score), keys)
    ranked = label[order]
    place = torch.zeros_like(ranked)
    for c in set(ranked.tolist()):
        mine = ranked == c
        place[mine] = torch.arange(int(mine.sum()), device=ranked.device)
    return order[place < limit][:k]
