"""Crops of pictures."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from outmodal.data.augment.base import Augment, Form, PositiveRange, Stage, column
from outmodal.data.crop import Box, random_resized_crop_box
from outmodal.data.draws import Draw


class RandomResizedCrop(Augment):
    """A part of random area and aspect, resized to the input (Szegedy et al., 2015).

    It is cut out of the stored picture, out of all frames of a film alike, before anything else,
    so that no more than the part is decoded and resized.

    Attributes:
        scale: Least and largest share of the picture's area.
        ratio: Least and largest width over height; its logarithm is uniform.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    stage: ClassVar[Stage] = "sample"
    form: ClassVar[Form] = "pixels"
    name: Literal["random_resized_crop"] = "random_resized_crop"
    scale: PositiveRange = (0.08, 1.0)
    ratio: PositiveRange = (0.75, 4.0 / 3.0)

    def box(self, height: int, width: int, generator: np.random.Generator) -> Box | None:
        """Return the part to cut out; None where it is not this picture's turn."""
        if generator.random() >= self.p:
            return None
        return random_resized_crop_box(height, width, self.scale, self.ratio, generator)


class PadCrop(Augment):
    """A crop of the same size out of the picture padded on all sides (He et al., 2015).

    Attributes:
        pad: Pixels of padding; the crop moves by at most as many in each direction.
        fill: What lies beyond the edge: a grey in 0..1, or None for the mirrored picture.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    form: ClassVar[Form] = "pixels"
    name: Literal["pad_crop"] = "pad_crop"
    pad: int = Field(default=4, gt=0)
    fill: float | None = Field(default=0.0, ge=0.0, le=1.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, shift = self.turns(keys, draw, word, 2)
        steps = (shift * (2 * self.pad + 1)).long() - self.pad
        steps = torch.where(turn[:, None], steps, torch.zeros_like(steps))
        for axis, step in ((2, steps[:, 0]), (3, steps[:, 1])):
            x = self._move(x, axis, step)
        return x

    def _move(self, x: Tensor, axis: int, step: Tensor) -> Tensor:
        size = x.shape[axis]
        source = torch.arange(size, device=x.device) + step[:, None]
        inside = (source >= 0) & (source < size)
        shape = [len(x), 1, 1, 1]
        shape[axis] = size
        index = _mirror(source, size).view(shape).expand_as(x)
        moved = x.gather(axis, index)
        if self.fill is None:
            return moved
        return torch.where(inside.view(shape), moved, column(x.new_full((1,), self.fill), 4))


def _mirror(source: Tensor, size: int) -> Tensor:
    """Reflect indices at the edges, without repeating the edge, as often as it takes."""
    if size == 1:
        return torch.zeros_like(source)
    period = 2 * (size - 1)
    wrapped = source.remainder(period)
    return torch.minimum(wrapped, period - wrapped)
