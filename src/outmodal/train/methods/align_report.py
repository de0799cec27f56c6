"""How well modalities are aligned: retrieval, and classification by class means."""

from __future__ import annotations

import torch
from torch import Tensor

from outmodal.models.features import unit_norm
from outmodal.train import diagnostics

_TILE = 4096  # rows of a similarity matrix that exist at a time


def class_means(e: Tensor, label: Tensor, classes: int) -> Tensor:
    """Unit mean of the unit vectors of each class, [N, d], [N] -> [C, d]; zeros without members.

    Rows labelled -1 take no part.
    """
    known = label >= 0
    sums = e.new_zeros((classes, e.shape[1])).index_add_(0, label[known], e[known])
    return unit_norm(sums)


def zero_shot(e: Tensor, means: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy of the nearest class mean by cosine, among samples with a label."""
    score = diagnostics.accuracy((e @ means.T).argmax(dim=1), truth)
    return {} if score != score else {"zero_shot": score}


def retrieval(query: Tensor, gallery: Tensor, truth: Tensor) -> dict[str, float]:
    """R@1 by cosine of each query among all gallery items.

    Args:
        query, gallery: [N, d] unit vectors; row n of both is one instance.
        truth: [N] classes, -1 where unknown.

    Returns:
        "r1_instance": the partner is first; "r1_class": an item of the query's class is first
        (among queries with a class; the partner counts). Empty where there is no sample.
    """
    if len(query) == 0:
        return {}
    first = torch.cat([(rows @ gallery.T).argmax(dim=1) for rows in torch.split(query, _TILE)])
    partner = torch.arange(len(query), device=first.device)
    found = {"r1_instance": float((first == partner).double().mean())}
    score = diagnostics.accuracy(truth[first], truth)
    return found if score != score else found | {"r1_class": score}
