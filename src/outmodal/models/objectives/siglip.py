"""The sigmoid loss of SigLIP, summed over all pairs of modalities.

Source: Zhai, Mustafa, Kolesnikov, Beyer: Sigmoid Loss for Language Image Pre-Training, ICCV 2023
(arXiv 2303.15343), algorithm 1, with its initial scale 10 and bias -10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from outmodal.models.kernels.nce import nce
from outmodal.models.objectives.base import Embedded, ObjectiveOutput, ObjectiveSettings
from outmodal.models.objectives.pairwise import Pairwise


class SigLipConfig(ObjectiveSettings):
    """SigLIP, for two or more modalities; its score is the mean cosine.

    Attributes:
        bias: What is added to every logit at the start; learned.
    """

    name: Literal["siglip"] = "siglip"
    temperature: float = Field(default=0.1, gt=0.0)
    bias: float = -10.0

    def build(self, modalities: Sequence[str], dim: int) -> SigLip:
        return SigLip(modalities, self)


class SigLip(Pairwise):
    """Sum over i < j of the mean over samples of sum_n' softplus(-+(scale * e^i_n . e^j_n' + b)).

    Attributes:
        bias: [1] learned.
    """

    def __init__(self, modalities: Sequence[str], config: SigLipConfig) -> None:
        super().__init__(modalities, config)
        self.bias = nn.Parameter(torch.tensor([config.bias]))

    def evaluate_batch(self, batch: Embedded) -> ObjectiveOutput:
        out = super().evaluate_batch(batch)
        return ObjectiveOutput(out.loss, {**out.logs, "logit_bias": self.bias.detach().float()[0]})

    def pair(
        self, batch: Embedded, names: tuple[str, str], a: Tensor, b: Tensor, held: Tensor
    ) -> Tensor:
        return nce(
            a,
            b,
            self.scale(),
            form="sigmoid",
            bias=self.bias,
            present=held,
            exchange=batch.exchange,
            impl=self.impl,
            names=names,
            check=False,
        )
