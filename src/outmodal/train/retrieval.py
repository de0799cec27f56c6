"""Retrieval between two modalities of the same samples: recall at k, and mean average precision.

The matrix of similarities exists in tiles of rows only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

KS = (1, 5, 10)
TILE = 1 << 22
"""Entries of a tile of the similarity matrix: 16 MB, and some times that while it is sorted."""


def recall(
    query: Tensor, gallery: Tensor, truth: Tensor, ks: Sequence[int] = KS, tile: int = TILE
) -> dict[str, float]:
    """How well queries find their partners, and items of their class, by inner product.

    Of equal similarities the earlier item comes first. The partner counts as an item of its class.

    Args:
        query, gallery: [N, d] unit vectors; row n of both is one sample.
        truth: [N] classes, -1 where unknown.
        ks: Lengths of the list of found items.
        tile: Similarities that exist at a time; at least one row of them does.

    Returns:
        "rK_instance": share of queries whose partner is among the first K. "rK_class": share of
        queries with a class that find an item of it there. "map_class": mean over these queries
        of the average precision of their class. Empty where there is no sample, without the
        class's where no sample has one.
    """
    count = len(query)
    if not count:
        return {}
    rows = max(1, tile // count)
    starts = range(0, count, rows)
    parts = [_places(query, gallery, truth, range(i, min(i + rows, count))) for i in starts]
    partner, first, precision = (torch.cat(column) for column in zip(*parts, strict=True))
    found = {f"r{k}_instance": _share(partner < k) for k in ks}
    known = truth.to(first.device) >= 0
    if bool(known.any()):
        found |= {f"r{k}_class": _share(first[known] < k) for k in ks}
        found["map_class"] = float(precision[known].mean())
    return found


def _places(
    query: Tensor, gallery: Tensor, truth: Tensor, rows: range
) -> tuple[Tensor, Tensor, Tensor]:
    """Of some queries: place of the partner, first place of their class, average precision."""
    index = torch.arange(rows.start, rows.stop, device=query.device)
    truth = truth.to(query.device)
    order = (query[index] @ gallery.T).sort(dim=1, descending=True, stable=True).indices
    partner = (order == index[:, None]).int().argmax(dim=1)
    same = truth[order] == truth[index][:, None]
    place = torch.arange(1, len(gallery) + 1, device=query.device)
    precision = same.cumsum(dim=1) / place
    average = (precision * same).double().sum(dim=1) / same.sum(dim=1)
    return partner, same.int().argmax(dim=1), average


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
