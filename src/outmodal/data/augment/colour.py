"""Changes of brightness, contrast and colour."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from outmodal.data.augment.base import Augment, Form, Probability, column, on_rows
from outmodal.data.augment.shades import blend, luminance, turn_hue
from outmodal.data.draws import Draw

Strength = Annotated[float, Field(ge=0.0)]


class ColorJitter(Augment):
    """Brightness, contrast, saturation and hue, in this order (Howard, 2013; SimCLR's settings).

    Factors are uniform in max(0, 1 - s) .. 1 + s. Saturation and hue act on three channels only.

    Attributes:
        brightness, contrast, saturation: Strengths s; 0 leaves out.
        hue: Largest turn of the colour circle in either direction, at most 0.5.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    form: ClassVar[Form] = "pixels"
    name: Literal["color_jitter"] = "color_jitter"
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: float = Field(default=0.1, ge=0.0, le=0.5)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, numbers = self.turns(keys, draw, word, 4)
        return on_rows(turn, self._change, x, numbers)

    def _change(self, x: Tensor, numbers: Tensor) -> Tensor:
        colour = x.shape[1] == 3
        if self.brightness:
            x = (x * _factor(numbers[:, 0], self.brightness)).clamp_(0.0, 1.0)
        if self.contrast:
            # in double precision: rows of any batch then have the same bits
            middle = luminance(x).double().mean((2, 3), keepdim=True).float()
            x = blend(x, middle, _factor(numbers[:, 1], self.contrast))
        if self.saturation and colour:
            x = blend(x, luminance(x), _factor(numbers[:, 2], self.saturation))
        if self.hue and colour:
            x = turn_hue(x, (2.0 * numbers[:, 3] - 1.0).view(-1, 1, 1) * self.hue)
        return x


def _factor(uniform: Tensor, strength: float) -> Tensor:
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return column(low + (high - low) * uniform, 4)


class Grayscale(Augment):
    """Luminance in all three channels; pictures of other channel counts stay as they are."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    form: ClassVar[Form] = "pixels"
    name: Literal["grayscale"] = "grayscale"
    p: Probability = 0.2

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        if x.shape[1] != 3:
            return x
        turn, _ = self.turns(keys, draw, word, 0)
        return on_rows(turn, lambda rows: luminance(rows).expand_as(rows), x)


class Solarize(Augment):
    """What is at least as bright as `threshold` (in 0..1) becomes its negative."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    form: ClassVar[Form] = "pixels"
    name: Literal["solarize"] = "solarize"
    p: Probability = 0.2
    threshold: float = Field(default=0.5, ge=0.0, le=1.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, _ = self.turns(keys, draw, word, 0)
        return on_rows(turn, self._change, x)

    def _change(self, x: Tensor) -> Tensor:
        return torch.where(x >= self.threshold, 1.0 - x, x)
