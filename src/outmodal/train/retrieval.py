"""Retrieval among the samples of a split: recall at k, and mean average precision.

A query is one modality or several of the same sample, and what it looks for is another modality
of that sample. Scores exist in tiles of whole rows only, never as the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outmodal.train.shares import by_rows

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


@dataclass(frozen=True)
class Places:
    """What each of N queries finds.

    Attributes:
        partner: [N] place of its partner in the list of found items, from 0.
        first: [N] place of the first item of its class.
        precision: [N] average precision of its class.
        known: [N] bool, whether it has a class; where not, `first` and `precision` mean nothing.
    """

    partner: Tensor
    first: Tensor
    precision: Tensor
    known: Tensor

    def values(self, ks: Sequence[int] = KS) -> dict[str, Tensor]:
        """One number a query, by the names of `recall_by`; the class's of those with one only."""
        found = {f"r{k}_instance": (self.partner < k).double() for k in ks}
        found["map_instance"] = 1.0 / (self.partner.double() + 1.0)
        if bool(self.known.any()):
            found |= {f"r{k}_class": (self.first[self.known] < k).double() for k in ks}
            found["map_class"] = self.precision[self.known]
        return found


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
    found = places_by(score, count, truth, tile, width).values(ks)
    return {name: float(values.mean()) for name, values in found.items()}


def places_by(score: Score, count: int, truth: Tensor, tile: int = TILE, width: int = 1) -> Places:
    """What each of `count` queries finds; queries are shared by the processes of a group.

    Args:
        score, count, truth, tile, width: See `recall_by`; count is 1 or more.
    """
    step = max(1, tile // (count * width))

    def part(rows: range) -> list[Tensor]:
        starts = range(rows.start, rows.stop, step)
        parts = [_places(score, count, truth, range(i, min(i + step, rows.stop))) for i in starts]
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    partner, first, precision = by_rows(count, step, part)
    return Places(partner, first, precision, truth.to(first.device) >= 0)


def recall_in_pools(
    score: Score, count: int, pool: int, seed: int = 0, ks: Sequence[int] = KS
) -> dict[str, float]:
    """The same where a query has `pool` candidates only: its partner and others, drawn by `seed`.

    Every query counts once. Where `pool` does not divide `count`, the last pool borrows samples
    that were queries of another.

    Returns:
        "rK_poolP" and "map_poolP", P the size; of all candidates where there are fewer.
    """
    found = values_in_pools(score, count, pool, seed, ks)
    return {name: float(values.mean()) for name, values in found.items()}


def values_in_pools(
    score: Score, count: int, pool: int, seed: int = 0, ks: Sequence[int] = KS
) -> dict[str, Tensor]:
    """One number a query, by the names of `recall_in_pools`; in the order of the pools."""
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
    found = {f"r{k}_pool{pool}": (partner < k).double() for k in ks}
    return {**found, f"map_pool{pool}": 1.0 / (partner.double() + 1.0)}


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
    index, truth = index.to(scores.device), truth.to(scores.device)
    partner = _places_of(scores, index)
    label = truth[index]
    if not bool((label >= 0).any()):
        return partner, torch.zeros_like(partner), partner.double() * 0
    order = scores.sort(dim=1, descending=True, stable=True).indices
    same = truth[order] == label[:, None]
    place = torch.arange(1, count + 1, device=order.device)
    # fp64: places above 2 ** 24 are not exact in fp32
    precision = same.cumsum(dim=1).double() / place
    average = (precision * same).sum(dim=1) / same.sum(dim=1)
    return partner, same.int().argmax(dim=1), average


def _places_of(scores: Tensor, item: Tensor) -> Tensor:
    """[q] place of one item in each row of [q, c]; of equals the earlier comes first."""
    own = scores.gather(1, item[:, None])
    column = torch.arange(scores.shape[1], device=scores.device)
    earlier = column[None, :] < item[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(dim=1)


def _partner_places(scores: Tensor) -> Tensor:
    """[n] place of the diagonal in each row of [n, n]."""
    scores = _clean(scores)
    return _places_of(scores, torch.arange(len(scores), device=scores.device))


def _clean(scores: Tensor) -> Tensor:
    return scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
