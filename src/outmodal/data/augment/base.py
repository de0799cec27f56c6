"""What every augmentation is: a configuration that changes a value, or a batch of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor

from outmodal.base import Config
from outmodal.data.draws import Draw

Value = NDArray[Any] | str
Stage = Literal["sample", "batch", "last"]
Form = Literal["pixels", "wave", "spectrogram", "steps", "features", "text"]
"""What an augmentation changes; several inputs have a place for it.

pixels: sample stage [H, W, C] of the stored integers; batch [B, C, H, W] float32 in 0..1; last the
    same after normalisation. wave: sample [channels, T]. spectrogram: batch [B, channels, mels, T]
after normalisation. steps: batch [B, length, channels]. features: batch [B, dim]. text: a string.
"""

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"lowest value first, got {pair[0]} > {pair[1]}")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
Positive = Annotated[float, Field(gt=0.0)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


class Augment(Config):
    """Base of the augmentations. `p` is the share of the samples that one changes.

    A subclass gives `sample` or `batch`, as its stage says. Numbers come from the draw alone;
    `word` names the augmentation and its place in the list, and goes into every draw.
    """

    kinds: ClassVar[tuple[str, ...]]
    stage: ClassVar[Stage] = "batch"
    form: ClassVar[Form]
    p: Probability = 1.0

    def sample(self, value: Value, generator: np.random.Generator) -> Value:
        """Change one value, whose turn it is."""
        raise NotImplementedError

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        """Return the changed batch; row i depends on row i of `x` and of `keys` only.

        Args:
            x: [B, ...] of the augmentation's form. It is not changed in place.
            keys: [B] int64.
            draw: Of the epoch.
            word: Names this augmentation among the input's.
        """
        raise NotImplementedError

    def turns(self, keys: Tensor, draw: Draw, word: str, count: int) -> tuple[Tensor, Tensor]:
        """Return whose turn it is, bool [B], and [B, count] uniform numbers to go by."""
        numbers = draw.uniforms(keys, word, count + 1)
        return numbers[:, 0] < self.p, numbers[:, 1:]


def between(uniforms: Tensor, limits: tuple[float, float]) -> Tensor:
    """Scale uniform numbers in 0..1 to a range."""
    low, high = limits
    return low + (high - low) * uniforms


def column(values: Tensor, ndim: int) -> Tensor:
    """Return [B] as [B, 1, ...] of `ndim` axes."""
    return values.view(-1, *(1,) * (ndim - 1))


def on_rows(turn: Tensor, change: Callable[..., Tensor], x: Tensor, *beside: Tensor) -> Tensor:
    """Return x [B, ...] with the rows changed whose turn [B] it is.

    On the CPU the other rows cost nothing. A GPU computes all and selects: to pick rows, the host
    would have to wait for it.

    Args:
        turn: bool [B].
        change: From x and what is beside it to x of the same shape, row by row.
        x: [B, ...]; it is not changed in place.
        beside: Further tensors of B rows.
    """
    if not _can_pick(x):
        return torch.where(column(turn, x.ndim), change(x, *beside), x)
    rows = turn.nonzero()[:, 0]
    if not len(rows):
        return x
    if len(rows) == len(x):
        return change(x, *beside)
    changed = change(*(values.index_select(0, rows) for values in (x, *beside)))
    return x.index_copy(0, rows, changed)


def _can_pick(x: Tensor) -> bool:
    return x.device.type == "cpu"
