"""RandAugment: a few operations out of fourteen, of one strength (Cubuk et al., 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from outmodal.data.augment import tables
from outmodal.data.augment.affine import about_centre, move
from outmodal.data.augment.base import Augment, Form, Probability, column, on_rows
from outmodal.data.draws import Draw, normal_quantiles

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""The paper's operations; a picture's is drawn uniformly in every round."""

_TABLES = ("autocontrast", "equalize", "solarize", "posterize", "contrast", "brightness")
STRONGEST = 10.0
"""Strength at which the operations' numbers are given."""

MOST = 30.0


class RandAugment(Augment):
    """`n` operations one after another, each drawn from OPERATIONS.

    The strengths are those that timm's "rand-m9-mstd0.5" gives to these operations. Operations
    other than moves act on 8-bit levels, as Pillow's do.

    Attributes:
        n: Rounds.
        magnitude: Mean strength, 0 to 30. Above 10 moves and enhancements go on at the same rate,
            and posterize and solarize end where nothing is left to change.
        std: Deviation of the strength, which is drawn in every round and cut to 0..10, or to
            `magnitude` where that is more.
        share: Probability that a round changes a picture at all.
        increasing: Whether posterize, solarize and the enhancements grow stronger with the
            magnitude, as the moves do; otherwise they go from one extreme to the other.
        fill: Grey in 0..1 where a move shows what lies outside of the picture.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    form: ClassVar[Form] = "pixels"
    name: Literal["rand_augment"] = "rand_augment"
    n: int = Field(default=2, ge=1)
    magnitude: float = Field(default=9.0, ge=0.0, le=MOST)
    std: float = Field(default=0.5, ge=0.0)
    share: Probability = 0.5
    increasing: bool = False
    fill: float = Field(default=0.5, ge=0.0, le=1.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, numbers = self.turns(keys, draw, word, 4 * self.n)
        for picked, strength, gate, sign in numbers.view(-1, self.n, 4).permute(1, 2, 0):
            operation = (picked * len(OPERATIONS)).long()
            operation = torch.where(turn & (gate < self.share), operation, 0)
            level = self._level(strength)
            side = torch.where(sign < 0.5, -1.0, 1.0)
            x = self._touch(x, operation, level, side)
            x = self._moved(x, operation, level * side)
        return x

    def _level(self, uniform: Tensor) -> Tensor:
        """Return strengths [B] as shares of STRONGEST."""
        drawn = self.magnitude + self.std * normal_quantiles(uniform)
        return torch.clamp(drawn, 0.0, max(STRONGEST, self.magnitude)) / STRONGEST

    def _factor(self, level: Tensor, side: Tensor) -> Tensor:
        """Return the share of the picture in an enhancement, 1 leaving it as it is."""
        if self.increasing:
            return torch.clamp(1.0 + 0.9 * level * side, min=0.1)
        return 0.1 + 1.8 * level

    def _touch(self, x: Tensor, operation: Tensor, level: Tensor, side: Tensor) -> Tensor:
        """Apply the operations that leave every pixel at its place."""
        factor = self._factor(level, side)
        x = on_rows(_among(operation, _TABLES), self._by_table, x, operation, level, factor)
        x = on_rows(_among(operation, ("color",)), _colour, x, factor)
        return on_rows(_among(operation, ("sharpness",)), _sharpen, x, factor)

    def _by_table(self, x: Tensor, operation: Tensor, level: Tensor, factor: Tensor) -> Tensor:
        levels = _levels(x)
        table = _choose(operation, self._tables(levels, level, factor), levels.shape[1])
        return tables.lookup(levels, table) / 255.0

    def _tables(self, levels: Tensor, level: Tensor, factor: Tensor) -> dict[str, Tensor]:
        counts = tables.histogram(levels)
        bits, threshold = (4.0 * level).floor(), (256.0 * level).floor()
        if self.increasing:
            bits, threshold = 4.0 - bits, 256.0 - threshold
        bits, threshold = bits.clamp(0.0, 8.0), threshold.clamp(0.0, 256.0)
        middle = (tables.grey(levels).double().mean((1, 2, 3)) + 0.5).floor().float()
        return {
            "autocontrast": tables.autocontrast(counts),
            "equalize": tables.equalize(counts),
            "solarize": tables.solarize(threshold),
            "posterize": tables.posterize(bits),
            "contrast": tables.toward(middle, factor),
            "brightness": tables.toward(torch.zeros_like(factor), factor),
        }

    def _moved(self, x: Tensor, operation: Tensor, level: Tensor) -> Tensor:
        """Apply the operations that move pixels; `level` is signed."""
        return on_rows(_among(operation, tuple(_MOVES)), self._move, x, operation, level)

    def _move(self, x: Tensor, operation: Tensor, level: Tensor) -> Tensor:
        height, width = x.shape[2:]
        matrix = torch.eye(2, 3, device=x.device).expand(len(x), 2, 3)
        for name, make in _MOVES.items():
            mine = _among(operation, (name,)).view(-1, 1, 1)
            matrix = torch.where(mine, make(level, height, width), matrix)
        return move(x, matrix, self.fill)


def _among(operation: Tensor, names: Sequence[str]) -> Tensor:
    """Return which of [B] are numbers of these operations."""
    found = [operation == _number(name) for name in names]
    return torch.stack(found).any(0)


def _levels(x: Tensor) -> Tensor:
    return (x * 255.0).round_().long()


def _colour(x: Tensor, factor: Tensor) -> Tensor:
    levels = _levels(x)
    grey = tables.grey(levels).float()
    return tables.mix(levels.float(), grey, column(factor, 4)) / 255.0


def _sharpen(x: Tensor, factor: Tensor) -> Tensor:
    levels = _levels(x).float()
    return tables.mix(levels, _smooth(levels), column(factor, 4)) / 255.0


def _number(name: str) -> int:
    return OPERATIONS.index(name)


def _choose(operation: Tensor, each: dict[str, Tensor], channels: int) -> Tensor:
    """Return every picture's table [B, C, 256]: its operation's, or the identity."""
    table = tables.identity(operation.device).expand(len(operation), channels, tables.LEVELS)
    for name, made in each.items():
        table = torch.where((operation == _number(name)).view(-1, 1, 1), made, table)
    return table


def _smooth(levels: Tensor) -> Tensor:
    """Pillow's ImageFilter.SMOOTH: 3 x 3 with 5/13 in the middle; the edge stays as it is."""
    if min(levels.shape[2:]) < 3:
        return levels
    inner = functional.avg_pool2d(levels, 3, stride=1) * (9.0 / 13.0)
    inner = (inner + levels[:, :, 1:-1, 1:-1] * (4.0 / 13.0) + 0.5).floor_()
    out = levels.clone()
    out[:, :, 1:-1, 1:-1] = inner
    return out


def _rotation(level: Tensor, height: int, width: int) -> Tensor:
    """Up to 30 degrees about the centre."""
    angle = level * (torch.pi / 6.0)
    cos, sin = angle.cos(), angle.sin()
    linear = torch.stack((torch.stack((cos, sin), 1), torch.stack((-sin, cos), 1)), 1)
    return about_centre(linear, height, width)


def _entry(row: int, col: int, values: Tensor) -> Tensor:
    """Return the identity [B, 2, 3] with `values` [B] added at one place."""
    matrix = torch.eye(2, 3, device=values.device).repeat(len(values), 1, 1)
    matrix[:, row, col] += values
    return matrix


_MOVES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "rotate": _rotation,
    "shear_x": lambda level, height, width: _entry(0, 1, 0.3 * level),
    "shear_y": lambda level, height, width: _entry(1, 0, 0.3 * level),
    "translate_x": lambda level, height, width: _entry(0, 2, 0.45 * width * level),
    "translate_y": lambda level, height, width: _entry(1, 2, 0.45 * height * level),
}
"""From signed strength [B], height and width to the maps [B, 2, 3] of `move`."""
