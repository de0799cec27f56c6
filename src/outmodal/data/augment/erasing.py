"""Random erasing (Zhong et al., 2017)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from outmodal.data.augment.base import (
    Augment,
    Form,
    PositiveRange,
    Probability,
    Stage,
    between,
    column,
    on_rows,
)
from outmodal.data.draws import Draw

ATTEMPTS = 10


class RandomErasing(Augment):
    """A rectangle of the normalised picture is overwritten.

    Area and logarithm of the aspect are drawn up to ten times, until the rectangle is smaller
    than the picture in both directions; else the picture stays whole.

    Attributes:
        area: Least and largest share of the picture's area.
        ratio: Least and largest height over width.
        fill: "constant" puts `value`; "noise" draws every pixel from the standard normal.
        value: In units of the normalised picture: 0 is its mean.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    stage: ClassVar[Stage] = "last"
    form: ClassVar[Form] = "pixels"
    name: Literal["erasing"] = "erasing"
    p: Probability = 0.25
    area: PositiveRange = (0.02, 1.0 / 3.0)
    ratio: PositiveRange = (0.3, 1.0 / 0.3)
    fill: Literal["constant", "noise"] = "constant"
    value: float = Field(default=0.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, numbers = self.turns(keys, draw, word, 2 * ATTEMPTS + 2)
        inside = self._rectangle(numbers, x.shape[2], x.shape[3]) & turn.view(-1, 1, 1)
        if self.fill == "constant":
            return x.masked_fill(inside[:, None], self.value)

        def overwrite(x: Tensor, keys: Tensor, inside: Tensor) -> Tensor:
            noise = draw.normals(keys, f"{word} noise", x[0].numel()).view(x.shape)
            return torch.where(inside[:, None], noise.to(x.dtype), x)

        return on_rows(turn, overwrite, x, keys, inside)

    def _rectangle(self, numbers: Tensor, height: int, width: int) -> Tensor:
        """Return [B, height, width], true inside of each picture's rectangle."""
        shapes, place = numbers[:, :-2].view(-1, ATTEMPTS, 2), numbers[:, -2:]
        area = between(shapes[..., 0], self.area) * (height * width)
        ratio = _log_between(shapes[..., 1], self.ratio)
        tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (tall < height) & (wide < width)
        first = fits.long().argmax(1, keepdim=True)
        some = fits.any(1)
        tall, wide = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
        top = (place[:, 0] * (height - tall + 1)).floor()
        left = (place[:, 1] * (width - wide + 1)).floor()
        rows = _span(top, tall, height) & some[:, None]
        return rows[:, :, None] & _span(left, wide, width)[:, None, :]


def _log_between(uniforms: Tensor, limits: tuple[float, float]) -> Tensor:
    """Scale uniform numbers to a range in which the logarithm is uniform."""
    low, high = limits
    return low * (high / low) ** uniforms


def _span(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return [B, size], true from `start` on for `length` places."""
    at = torch.arange(size, device=start.device)
    return (at >= column(start, 2)) & (at < column(start + length, 2))
