"""Augmentations of normalised series [B, length, channels]."""

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
    between,
    column,
    on_rows,
)
from outmodal.data.augment.masks import spans
from outmodal.data.draws import Draw


class _SeriesAugment(Augment):
    kinds: ClassVar[tuple[str, ...]] = ("series",)
    form: ClassVar[Form] = "steps"


class Jitter(_SeriesAugment):
    """Normal noise on every value (Um et al., 2017).

    Attributes:
        sigma: Its deviation, in deviations of the channel.
    """

    name: Literal["jitter"] = "jitter"
    sigma: float = Field(default=0.05, gt=0.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, _ = self.turns(keys, draw, word, 0)

        def add(x: Tensor, keys: Tensor) -> Tensor:
            noise = draw.normals(keys, f"{word} noise", x[0].numel()).view(x.shape)
            return x + self.sigma * noise

        return on_rows(turn, add, x, keys)


class Scaling(_SeriesAugment):
    """Every channel times a factor around 1 (Um et al., 2017).

    Attributes:
        sigma: Deviation of the normal factors.
    """

    name: Literal["scaling"] = "scaling"
    sigma: float = Field(default=0.1, gt=0.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, _ = self.turns(keys, draw, word, 0)
        factors = 1.0 + self.sigma * draw.normals(keys, f"{word} factors", x.shape[2])
        return torch.where(column(turn, 3), x * factors[:, None], x)


class Window(_SeriesAugment):
    """A part of the series stretched to its length, linearly (Le Guennec et al., 2016).

    Attributes:
        share: Least and largest length of the part, as a share of the whole.
    """

    name: Literal["window"] = "window"
    share: PositiveRange = (0.8, 1.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, numbers = self.turns(keys, draw, word, 2)
        last = x.shape[1] - 1
        span = between(numbers[:, :1], self.share).clamp(max=1.0) * last
        start = numbers[:, 1:] * (last - span)
        steps = torch.linspace(0.0, 1.0, x.shape[1], device=x.device)
        place = (start + span * steps).clamp(0.0, last)
        below = place.floor().long().clamp(max=max(last - 1, 0))
        above = (below + 1).clamp(max=last)
        rest = (place - below)[..., None]
        first, second = (x.gather(1, at[..., None].expand_as(x)) for at in (below, above))
        return torch.where(column(turn, 3), torch.lerp(first, second, rest), x)


class ChannelDropout(_SeriesAugment):
    """Each channel becomes 0, its mean, independently.

    Attributes:
        rate: Probability of it.
    """

    name: Literal["channel_dropout"] = "channel_dropout"
    rate: Probability = 0.1

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, numbers = self.turns(keys, draw, word, x.shape[2])
        return x.masked_fill((numbers < self.rate)[:, None] & column(turn, 3), 0.0)


class TimeMask(_SeriesAugment):
    """Stretches of time become 0, each channel's mean.

    Attributes:
        masks: Stretches.
        share: Longest stretch, as a share of the length.
    """

    name: Literal["time_mask"] = "time_mask"
    masks: int = Field(default=1, ge=1)
    share: float = Field(default=0.2, gt=0.0, le=1.0)

    def batch(self, x: Tensor, keys: Tensor, draw: Draw, word: str) -> Tensor:
        turn, numbers = self.turns(keys, draw, word, 2 * self.masks)
        masked = spans(numbers, x.shape[1], self.share * x.shape[1])
        return x.masked_fill(masked[..., None] & column(turn, 3), 0.0)
