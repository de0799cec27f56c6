"""GRAM: contrast by the volume that the unit vectors of a tuple span.

V = sqrt(det Gram), small where the vectors agree. A row's logits are -scale * V of its anchor's
vector with every sample's other vectors; the other direction keeps those and varies the anchor.

Source: Cicchetti, Grassucci, Sigillo, Comminiello: Gramian Multimodal Representation Learning and
Alignment, ICLR 2025 (arXiv 2412.11959), section 4; label smoothing and the initial temperature are
those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from outmodal.errors import UserError, nearest
from outmodal.models.kernels.ova import group_scores, ova
from outmodal.models.objectives.base import (
    Embedded,
    Objective,
    ObjectiveOutput,
    ObjectiveSettings,
)


class GramConfig(ObjectiveSettings):
    """Gram, for two to six modalities; its score is minus the volume.

    Attributes:
        anchor: The modality that faces the others, in both directions; None: the mean over each
            modality as the anchor.
        smoothing: Label smoothing.
    """

    name: Literal["gram"] = "gram"
    anchor: str | None = None
    smoothing: float = Field(default=0.1, ge=0.0, lt=1.0)

    def build(self, modalities: Sequence[str], dim: int) -> Gram:
        return Gram(modalities, self)


class Gram(Objective):
    """Mean over anchors of half the cross-entropies of -scale * V both ways.

    An anchor counts in the samples that have it and at least one other modality; a modality that
    a sample lacks is left out of its volume.
    """

    most = 6

    def __init__(self, modalities: Sequence[str], config: GramConfig) -> None:
        super().__init__(modalities, config)
        self.smoothing = config.smoothing
        self.anchors = anchor_places(config.anchor, self.modalities)

    def evaluate_batch(self, batch: Embedded) -> ObjectiveOutput:
        loss = ova(
            batch.units,
            self.scale(),
            score="volume",
            anchors=self.anchors,
            both=True,
            present=batch.held,
            smoothing=self.smoothing,
            signed_pair=False,
            exchange=batch.exchange,
            impl=self.impl,
            names=batch.names,
            check=False,
        )
        return self.report({"volume": loss})

    def score(self, query: Mapping[str, Tensor], candidates: Tensor, target: str) -> Tensor:
        """Minus the volume of the query's vectors and the candidate's."""
        return group_scores(candidates, list(query.values()), score="volume").T


def anchor_places(anchor: str | None, modalities: Sequence[str]) -> tuple[int, ...] | None:
    """Index of the named anchor; None for all.

    Raises:
        UserError: The name is not among the modalities.
    """
    if anchor is None:
        return None
    if anchor not in modalities:
        raise UserError(
            f"objective.anchor is '{anchor}', which is not aligned{nearest(anchor, modalities)}"
        )
    return (tuple(modalities).index(anchor),)
