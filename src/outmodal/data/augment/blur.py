"""Blurred pictures."""

from __future__ import annotations

from math import ceil
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from outmodal.data.augment.base import (
    Augment,
    Form,
    PositiveRange,
    Probability,
    between,
    on_rows,
)
from outmodal.data.draws import Draw

REACH = 3.0
"""Deviations of the largest blur at which its kernel is cut off."""


class GaussianBlur(Augment):
    """A Gaussian filter whose edges repeat, its deviation drawn for each picture (SimCLR).

    Attributes:
        sigma: Least and largest standard deviation in pixels of the input.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    form: ClassVar[Form] = "pixels"
    name: Literal["blur"] = "blur"
    p: Probability = 0.5
    sigma: PositiveRange = (0.1, 2.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, numbers = self.turns(keys, draw, word, 1)
        reach = ceil(REACH * self.sigma[1])
        kernel = _kernel(between(numbers, self.sigma), reach)
        return on_rows(turn, _filter, x, kernel)


def _kernel(sigma: Tensor, reach: int) -> Tensor:
    """Return [B, 2 * reach + 1] weights that sum to 1 for deviations [B, 1]."""
    at = torch.arange(-reach, reach + 1, dtype=sigma.dtype, device=sigma.device)
    return torch.softmax(-0.5 * (at / sigma) ** 2, 1)


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter the rows, then the columns, of every channel by its picture's kernel.

    Tap by tap: libraries of convolutions choose how to sum by the size of the batch, so that a
    picture's bits would depend on it.
    """
    reach = kernel.shape[1] // 2
    for axis, padding in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        wide = functional.pad(x, padding, mode="replicate")
        taps = kernel.t().reshape(-1, len(x), 1, 1, 1)
        out = wide.narrow(axis, 0, x.shape[axis]) * taps[0]
        for place in range(1, len(taps)):
            out.addcmul_(wide.narrow(axis, place, x.shape[axis]), taps[place])
        x = out
    return x
