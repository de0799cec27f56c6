"""How well modalities are aligned: retrieval, and classification by class means."""

from __future__ import annotations

import torch
from torch import Tensor

from outmodal.models.features import unit_norm
from outmodal.train import diagnostics
from outmodal.train.retrieval import TILE, Score


def class_means(e: Tensor, label: Tensor, classes: int) -> Tensor:
    """Unit mean of the unit vectors of each class, [N, d], [N] -> [C, d]; zeros without members.

    Rows labelled -1 take no part.
    """
    known = label >= 0
    sums = e.new_zeros((classes, e.shape[1])).index_add_(0, label[known], e[known])
    return unit_norm(sums)


def zero_shot(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy of the class whose mean scores best, [N, C], among samples with a label."""
    score = diagnostics.accuracy(scores.argmax(dim=1), truth)
    return {} if score != score else {"zero_shot": score}


def retrieval(score: Score, truth: Tensor) -> dict[str, float]:
    """R@1 of each query among all items of the gallery.

    Args:
        score: Scores of queries and items by their indices; query n and item n are one instance.
        truth: [N] classes, -1 where unknown.

    Returns:
        "r1_instance": the partner is first; "r1_class": an item of the query's class is first
        (among queries with a class; the partner counts). Empty where there is no sample.
    """
    count = len(truth)
    if count == 0:
        return {}
    every = torch.arange(count)
    rows = torch.split(every, max(1, TILE // count))
    first = torch.cat([score(some, every).argmax(dim=1) for some in rows])
    found = {"r1_instance": float((first == every).double().mean())}
    right = diagnostics.accuracy(truth[first], truth)
    return found if right != right else found | {"r1_class": right}
