"""Augmentations of vectors [B, dim], such as a perceptor's features."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from outmodal.data.augment.base import Augment, Form, column
from outmodal.data.draws import Draw


class FeatureNoise(Augment):
    """Normal noise on every value.

    Attributes:
        sigma: Its deviation, in deviations of the vector's own values.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vector",)
    form: ClassVar[Form] = "features"
    name: Literal["feature_noise"] = "feature_noise"
    sigma: float = Field(default=0.1, gt=0.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, _ = self.turns(keys, draw, word, 0)
        deviation = self.sigma * x.std(1, correction=0, keepdim=True)
        noise = draw.normals(keys, f"{word} noise", x.shape[1])
        return torch.where(column(turn, 2), x + deviation * noise, x)


class FeatureDropout(Augment):
    """Values become 0 independently, the others grow by 1 / (1 - rate) (Srivastava et al., 2014).

    Attributes:
        rate: Probability of it.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vector",)
    form: ClassVar[Form] = "features"
    name: Literal["feature_dropout"] = "feature_dropout"
    rate: float = Field(default=0.1, ge=0.0, lt=1.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, numbers = self.turns(keys, draw, word, x.shape[1])
        kept = (numbers >= self.rate) * (1.0 / (1.0 - self.rate))
        return torch.where(column(turn, 2), x * kept, x)
