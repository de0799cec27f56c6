"""Pairwise CLIP with an information bottleneck on each pair.

Source: Almudévar, Hernández-Lobato, Khurana, Marxer, Ortega: Aligning Multimodal Representations
through an Information Bottleneck, ICML 2025 (arXiv 2506.04870). With deterministic encoders the
bottleneck is the squared distance of a pair, and 1 - cos is half of that for unit vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from outmodal.models.objectives.base import Embedded, ObjectiveSettings
from outmodal.models.objectives.clip import Clip


class ClipIbConfig(ObjectiveSettings):
    """Pairwise CLIP + IB, for two or more modalities; its score is the mean cosine.

    Attributes:
        beta: Weight of the bottleneck of each pair.
    """

    name: Literal["clip_ib"] = "clip_ib"
    beta: float = Field(default=1.0, ge=0.0)

    def build(self, modalities: Sequence[str], dim: int) -> ClipIb:
        return ClipIb(modalities, self)


class ClipIb(Clip):
    """Sum over i < j of CLIP's loss + beta * mean(1 - e^i . e^j)."""

    def __init__(self, modalities: Sequence[str], config: ClipIbConfig) -> None:
        super().__init__(modalities, config)
        self.beta = config.beta

    def pair(
        self, batch: Embedded, names: tuple[str, str], a: Tensor, b: Tensor, held: Tensor
    ) -> Tensor:
        contrast = super().pair(batch, names, a, b, held)
        apart = 1.0 - (a.to(contrast.dtype) * b.to(contrast.dtype)).sum(dim=1)
        return contrast + self.beta * batch.mean(apart, held)
