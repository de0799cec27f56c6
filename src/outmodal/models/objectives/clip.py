"""The symmetric contrastive loss of CLIP, summed over all pairs of modalities.

Source: Radford et al., Learning Transferable Visual Models From Natural Language
Supervision, ICML 2021 (arXiv 2103.00020), figure 3; InfoNCE of van den Oord et al., 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from outmodal.models.kernels.nce import nce
from outmodal.models.objectives.base import Embedded, ObjectiveSettings
from outmodal.models.objectives.pairwise import Pairwise


class ClipConfig(ObjectiveSettings):
    """Pairwise CLIP, for two or more modalities; its score is the mean cosine."""

    name: Literal["clip"] = "clip"

    def build(self, modalities: Sequence[str], dim: int) -> Clip:
        return Clip(modalities, self)


class Clip(Pairwise):
    """Sum over i < j of half the cross-entropies of e^i against e^j and of e^j against e^i."""

    def pair(
        self, batch: Embedded, names: tuple[str, str], a: Tensor, b: Tensor, held: Tensor
    ) -> Tensor:
        return nce(
            a,
            b,
            self.scale(),
            present=held,
            exchange=batch.exchange,
            impl=self.impl,
            names=names,
            check=False,
        )
