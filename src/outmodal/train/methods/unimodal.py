"""Unimodal: one modality's encoder and classifier, the floor of the fusion tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from outmodal.errors import UserError
from outmodal.train.methods.base import Context
from outmodal.train.methods.concat import Concat
from outmodal.train.methods.fusion import FusionConfig


class UnimodalConfig(FusionConfig):
    """Cross-entropy on one modality.

    Attributes:
        modalities: The one modality; () is that of the run's only learner.
    """

    name: Literal["unimodal"] = "unimodal"

    def build(self, context: Context) -> Unimodal:
        """Make the method for a run."""
        return Unimodal(context, self)


class Unimodal(Concat):
    """min mean CE(W r^m + b, y) over the samples that have m."""

    least = 1

    def __init__(self, context: Context, config: UnimodalConfig) -> None:
        super().__init__(context, config)
        if len(self.modalities) > 1:
            raise UserError(
                f"method unimodal trains one modality, got {', '.join(self.modalities)}: name one "
                "of them in method.modalities"
            )

    def alone(self, r: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self.fused({m: t}) for m, t in r.items()}

    def classifier(self, modality: str) -> nn.Linear | None:
        self.place(modality)
        return self.joint
