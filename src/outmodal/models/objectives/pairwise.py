"""Objectives that are a sum over pairs of modalities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from outmodal.models.objectives.base import Embedded, Objective, ObjectiveOutput


class Pairwise(Objective):
    """Sum over i < j of a loss of the two modalities' unit vectors.

    A sample counts for the pairs it has: in other pairs it is neither anchor nor negative.
    """

    def evaluate_batch(self, batch: Embedded) -> ObjectiveOutput:
        terms: dict[str, Tensor] = {}
        for i, j in combinations(range(len(batch.names)), 2):
            held = batch.held[:, i] & batch.held[:, j]
            pair = (batch.names[i], batch.names[j])
            terms["_".join(pair)] = self.pair(batch, pair, batch.units[i], batch.units[j], held)
        return self.report(terms)

    @abstractmethod
    def pair(
        self, batch: Embedded, names: tuple[str, str], a: Tensor, b: Tensor, held: Tensor
    ) -> Tensor:
        """Scalar loss of two modalities, [n, d] each; `held` [n] marks the samples with both."""

    def score(self, query: Mapping[str, Tensor], candidates: Tensor, target: str) -> Tensor:
        """Mean cosine over the query's modalities (OVA-IB, section 4.4)."""
        return torch.stack(list(query.values())).mean(dim=0) @ candidates.T
