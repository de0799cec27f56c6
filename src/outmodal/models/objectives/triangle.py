"""TRIANGLE: contrast of three modalities by the area of the triangle of their unit vectors.

With u = a - b and v = a - c the area is sqrt(|u|^2 |v|^2 - (u.v)^2) / 2; the authors' code leaves
the root out, which is twice the squared area.

Source: Cicchetti, Grassucci, Comminiello: A TRIANGLE Enables Multimodal Alignment Beyond Cosine
Similarity, NeurIPS 2025 (arXiv 2509.24734), and its released code (label smoothing, no root).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from outmodal.models.kernels.ova import group_scores, ova
from outmodal.models.objectives.base import (
    Embedded,
    Objective,
    ObjectiveOutput,
    ObjectiveSettings,
)
from outmodal.models.objectives.dense import cross_entropy_rows
from outmodal.models.objectives.gram import anchor_places

EPS = 1e-12  # under the root, whose gradient at 0 is infinite


class TriangleConfig(ObjectiveSettings):
    """TRIANGLE, for exactly three modalities; its score is minus the area.

    Attributes:
        anchor: The modality that faces the two others, in both directions; None: the mean over
            each modality as the anchor.
        area: code: twice the squared area, as released; root: the area itself, as printed (holds
            the matrix of all pairs).
        smoothing: Label smoothing.
    """

    name: Literal["triangle"] = "triangle"
    anchor: str | None = None
    area: Literal["code", "root"] = "code"
    smoothing: float = Field(default=0.1, ge=0.0, lt=1.0)

    def build(self, modalities: Sequence[str], dim: int) -> Triangle:
        return Triangle(modalities, self)


class Triangle(Objective):
    """Mean over anchors of half the cross-entropies of -scale * area both ways.

    Samples that lack a modality take no part.
    """

    fewest = most = 3
    together = True

    def __init__(self, modalities: Sequence[str], config: TriangleConfig) -> None:
        super().__init__(modalities, config)
        self.smoothing, self.area = config.smoothing, config.area
        self.anchors = anchor_places(config.anchor, self.modalities)

    def evaluate_batch(self, batch: Embedded) -> ObjectiveOutput:
        if self.area == "root":
            places = self.anchors or range(3)
            losses = [self._rooted(batch, m) for m in places]
            return self.report({"area": torch.stack(losses).mean()})
        loss = ova(
            batch.units,
            self.scale(),
            score="area",
            anchors=self.anchors,
            both=True,
            present=batch.complete[:, None].expand(-1, 3),
            smoothing=self.smoothing,
            exchange=batch.exchange,
            impl=self.impl,
            names=batch.names,
            check=False,
        )
        return self.report({"area": loss})

    def _rooted(self, batch: Embedded, anchor: int) -> Tensor:
        """One anchor's loss with the root, over the whole matrix."""
        exchange, own = batch.exchange, batch.units
        everyone = [exchange.gather(e) for e in own]
        live = exchange.gather(batch.complete.float()) > 0.5
        b, c = (m for m in range(3) if m != anchor)
        partner = torch.arange(len(batch.held), device=live.device)
        partner = partner + exchange.offset(len(partner))
        rows = root_areas(own[anchor], everyone[b], everyone[c])
        columns = root_areas(everyone[anchor], own[b], own[c]).T
        losses = [
            cross_entropy_rows(-self.scale() * areas, partner, live, self.smoothing)
            for areas in (rows, columns)
        ]
        return batch.mean((losses[0] + losses[1]) / 2, batch.complete)

    def score(self, query: Mapping[str, Tensor], candidates: Tensor, target: str) -> Tensor:
        """Minus the area of the query's two vectors and the candidate's.

        A query of one modality has no triangle, only a side: the score is then the cosine, which
        ranks as minus the side does.
        """
        vectors = list(query.values())
        if len(vectors) == 1:
            return vectors[0] @ candidates.T
        if self.area == "root":
            return -root_areas(candidates, *vectors).T
        return group_scores(candidates, vectors, score="area").T


def root_areas(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Areas [A, B] of the triangles of unit vectors a [A, d] with b and c [B, d]."""
    squares = -group_scores(a, [b, c], score="area") / 2
    return (squares.clamp(min=0.0) + EPS).sqrt()
