"""Mirrored pictures."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from outmodal.data.augment.base import Augment, Form, Probability, on_rows
from outmodal.data.draws import Draw


class _Flip(Augment):
    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    form: ClassVar[Form] = "pixels"
    axis: ClassVar[int]
    p: Probability = 0.5

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, _ = self.turns(keys, draw, word, 0)
        return on_rows(turn, lambda rows: rows.flip(self.axis), x)


class HorizontalFlip(_Flip):
    """Left and right change places."""

    axis: ClassVar[int] = -1
    name: Literal["hflip"] = "hflip"


class VerticalFlip(_Flip):
    """Top and bottom change places."""

    axis: ClassVar[int] = -2
    name: Literal["vflip"] = "vflip"
