"""Retrieval among the samples of a split: recall at k, and mean average precision.

A query is one modality or several of the same sample, and what it looks for is another modality
of that sample. Scores exist in tiles of whole rows only, never as the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

KS = (1, 5, 10)
TILE = 1 << 22
"""Entries of a tile of scores: 16 MB, and some times that while it is sorted."""

Score = Callable[[Tensor, Tensor], Tensor]
"""Takes indices of queries [q] and of candidates [c], returns scores [q, c]: higher is better."""

Scorer = Callable[[Mapping[str, Tensor], Tensor, str], Tensor]
"""An objective's own scorer: takes query modalities, each [q, d], candidates [c, d] and the name
of their modality; returns scores [q, c], higher is better."""


def recall(
    query: Tensor, gallery: Tensor, truth: Tensor, ks: Sequence[int] = KS, tile: int = TILE
) -> dict[str, float]:
    """How well queries find their partners, and items of their class, by inner product.

    Args:
        query, gallery: [N, d] unit vectors; row n of both is one sample.
        truth, ks, tile: See `recall_by`.
    """
    return recall_by(lambda q, c: query[q] @ gallery[c].T, len(query), truth, ks, tile)


def recall_by(
    score: Score,
    count: int,
    truth: Tensor,
    ks: Sequence[int] = KS,
    tile: int = TILE,
    width: int = 1,
) -> dict[str, float]:
    """How well `count` queries find their partners, and items of their class, among as many.

    Of equal scores the earlier item comes first, and NaN is the lowest score. The partner counts
    as an item of its class.

    Args:
        score: Scores of queries and candidates; query n and candidate n are one sample.
        count: N.
        truth: [N] classes, -1 where unknown.
        ks: Lengths of the list of found items.
        tile: Scores that exist at a time; at least one row of them does.
        width: Numbers that the scorer keeps for one score: modalities of a query.

    Returns:
        "rK_instance": share of queries whose partner is among the first K. "map_instance": mean
        average precision, which with one relevant item is the mean of 1 / (place of the partner).
        "rK_class": share of queries with a class that find an item of it there. "map_class": mean
        over these queries of the average precision of their class. Empty where there is no
        sample, without the class's where no sample has one.
    """
    if not count:
        return {}
    rows = max(1, tile // (count * width))
    starts = range(0, count, rows)
    parts = [_places(score, count, truth, range(i, min(i + rows, count))) for i in starts]
    partner, first, precision = (torch.cat(column) for column in zip(*parts, strict=True))
    found = {f"r{k}_instance": _share(partner < k) for k in ks}
    found["map_instance"] = _reciprocal(partner)
    known = truth.to(first.device) >= 0
    if bool(known.any()):
        found |= {f"r{k}_class": _share(first[known] < k) for k in ks}
        found["map_class"] = float(precision[known].mean())
    return found


def recall_in_pools(
    score: Score, count: int, pool: int, seed: int = 0, ks: Sequence[int] = KS
) -> dict[str, float]:
    """The same where a query has `pool` candidates only: its partner and others, drawn by `seed`.

    Every query counts once. Where `pool` does not divide `count`, the last pool borrows samples
    that were queries of another.

    Returns:
        "rK_poolP" and "map_poolP", P the size; of all candidates where there are fewer.
    """
    if not count:
        return {}
    size = min(pool, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    places = []
    for start in range(0, count, size):
        begin = min(start, count - size)
        fresh = order[start : start + size]
        members = order[begin : begin + size].sort().values
        place = _partner_places(score(members, members))
        places.append(place[torch.isin(members, fresh).to(place.device)])
    partner = torch.cat(places)
    found = {f"r{k}_pool{pool}": _share(partner < k) for k in ks}
    return {**found, f"map_pool{pool}": _reciprocal(partner)}


def score_by(scorer: Scorer, units: Mapping[str, Tensor], query: Sequence[str], to: str) -> Score:
    """Return the score of samples by some of their modalities against the modality `to`.

    Args:
        scorer: An objective's scorer.
        units: Modality -> [N, d] unit vectors of the same samples.
        query: Modalities of the query.
        to: Modality that is looked for.
    """

    def score(queries: Tensor, candidates: Tensor) -> Tensor:
        asked = {m: units[m][queries] for m in query}
        with torch.no_grad():
            return scorer(asked, units[to][candidates], to)

    return score


def mean_cosine(query: Mapping[str, Tensor], candidates: Tensor, target: str) -> Tensor:
    """Scorer of encoders that have no other: the mean inner product over the query's modalities."""
    total: Tensor = torch.stack([e @ candidates.T for e in query.values()]).mean(dim=0)
    return total


def _places(score: Score, count: int, truth: Tensor, rows: range) -> tuple[Tensor, Tensor, Tensor]:
    """Of some queries: place of the partner, first place of their class, average precision."""
    index = torch.arange(rows.start, rows.stop)
    scores = _clean(score(index, torch.arange(count)))
    order = scores.sort(dim=1, descending=True, stable=True).indices
    index, truth = index.to(order.device), truth.to(order.device)
    partner = (order == index[:, None]).int().argmax(dim=1)
    same = truth[order] == truth[index][:, None]
    place = torch.arange(1, count + 1, device=order.device)
    precision = same.cumsum(dim=1) / place
    average = (precision * same).double().sum(dim=1) / same.sum(dim=1)
    return partner, same.int().argmax(dim=1), average


def _partner_places(scores: Tensor) -> Tensor:
    """[n] place of the diagonal in each row of [n, n]; of equals the earlier comes first."""
    scores = _clean(scores)
    own = scores.diagonal()[:, None]
    column = torch.arange(len(scores), device=scores.device)
    earlier = column[None, :] < column[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(dim=1)


def _clean(scores: Tensor) -> Tensor:
    return scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _reciprocal(place: Tensor) -> float:
    return float((1.0 / (place.double() + 1.0)).mean())


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
