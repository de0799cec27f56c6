"""SpecAugment's masks (Park et al., 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from outmodal.data.augment.base import Augment, Form
from outmodal.data.augment.masks import spans
from outmodal.data.draws import Draw


class SpecAugment(Augment):
    """Bands of a normalised spectrogram, and stretches of time, become `value`.

    Attributes:
        freq_masks: Masks over mel bands.
        freq_width: Most bands that one covers.
        time_masks: Masks over time.
        time_width: Most frames that one covers.
        time_share: Bound of that width as a share of the frames.
        value: In units of the normalised spectrogram: 0 is its mean.
    """

    kinds: ClassVar[tuple[str, ...]] = ("audio",)
    form: ClassVar[Form] = "spectrogram"
    name: Literal["spec_augment"] = "spec_augment"
    freq_masks: int = Field(default=2, ge=0)
    freq_width: int = Field(default=8, ge=1)
    time_masks: int = Field(default=2, ge=0)
    time_width: int = Field(default=100, ge=1)
    time_share: float = Field(default=0.2, gt=0.0, le=1.0)
    value: float = 0.0

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, numbers = self.turns(keys, draw, word, 2 * (self.freq_masks + self.time_masks))
        bands, frames = x.shape[-2:]
        split = 2 * self.freq_masks
        low = spans(numbers[:, :split], bands, self.freq_width)
        long = spans(numbers[:, split:], frames, min(self.time_width, self.time_share * frames))
        masked = (low[:, :, None] | long[:, None, :]) & turn.view(-1, 1, 1)
        return x.masked_fill(masked.view(len(x), *(1,) * (x.ndim - 3), bands, frames), self.value)
