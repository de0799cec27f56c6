"""Films of perceptors: a few frames, over the whole film or in clips spread over it."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from outmodal.data.decode import DecodeError
from outmodal.data.film import Frames, read_frames
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.perceptor_inputs.geometry import (
    CLIP_MEAN,
    CLIP_STD,
    Normalize,
    crop_centre,
    crop_three,
    scale_planes,
)
from outmodal.data.picture import check_moments
from outmodal.data.transform import BaseInput, Transform, Value, array
from outmodal.data.windows import spread_windows

if TYPE_CHECKING:
    from outmodal.data.draws import Draw


class SampledVideoInput(BaseInput):
    """Frames of a film: [3, frames, size, size], or with clips [clips * crops, 3, frames, ...].

    Attributes:
        clips: Windows of `clip_seconds` at even distances, the first at the start and the last
            at the end; 0 takes the frames from the whole film.
        clip_seconds: Length of a window. A shorter film gives the same window for every clip.
        frames: Frames at even distances, rounded down, from the first to the last.
        crops: 1 is the central square; 3 are the squares at the start, the centre and the end
            of the longer side, clip by clip.
        size: Side of the square; the short side is scaled to it bilinearly.
        antialias: Whether scaling antialiases.
        rate: Frames a second of films that come decoded, without the file that says it.
        mean, std: What to subtract from 0..1 and to divide by.
    """

    kinds: ClassVar[tuple[str, ...]] = ("video",)
    name: Literal["sampled_video"] = "sampled_video"
    clips: int = Field(default=0, ge=0)
    clip_seconds: float = Field(default=2.0, gt=0)
    frames: int = Field(default=8, gt=0)
    crops: Literal[1, 3] = 1
    size: int = Field(default=224, gt=0)
    antialias: bool = False
    rate: float = Field(default=30.0, gt=0)
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_moments(self.mean, self.std, 3)
        if not self.clips and self.crops > 1:
            raise ValueError("crops needs clips")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        lead = (self.clips * self.crops,) if self.clips else ()
        return (*lead, 3, self.frames, self.size, self.size)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        self.spec(dataset, modality)
        return SampledVideo(self)


class SampledVideo(Transform):
    """Films to float32 of the input's shape.

    From a file it decodes what it needs only, at the frame rate that the file says.
    """

    def __init__(self, config: SampledVideoInput) -> None:
        super().__init__(config, config.shape)
        self.settings = config
        self.normalize = Normalize(config.mean, config.std)

    def __call__(self, value: Value, key: str) -> Tensor:
        film = array(value, 4)
        if film.dtype != np.uint8 or film.shape[3] != 3:
            raise DecodeError(f"expected uint8 [F, H, W, 3], got {film.dtype} {list(film.shape)}")
        return self._arrange(film[list(self._pick(len(film), Fraction(self.settings.rate)))])

    def from_bytes(self, spec: Modality, data: bytes, key: str, draw: Draw | None = None) -> Tensor:
        return self._arrange(read_frames(data, self._pick))

    def _pick(self, count: int, rate: Fraction | None) -> list[int]:
        """Return the numbers of the frames to take out of `count`, clip by clip."""
        s = self.settings
        if not s.clips:
            return spaced(0, count, s.frames)
        if rate is None:
            raise DecodeError("the film does not say its frame rate")
        picked = []
        for start, stop in spread_windows(count / rate, s.clip_seconds, s.clips):
            first = min(ceil(rate * start), count - 1)
            picked += spaced(first, max(min(ceil(rate * stop), count), first + 1), s.frames)
        return picked

    def _arrange(self, frames: Frames) -> Tensor:
        """[clips * frames, H, W, 3] to the input's tensor."""
        s = self.settings
        planes = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        scaled = self.normalize(scale_planes(planes, s.size, "bilinear", s.antialias))
        if not s.clips:
            return crop_centre(scaled, s.size).transpose(0, 1).contiguous()
        clips = scaled.view(s.clips, s.frames, *scaled.shape[1:]).transpose(1, 2)
        squares = crop_three(clips, s.size) if s.crops == 3 else [crop_centre(clips, s.size)]
        return torch.stack(squares, dim=1).flatten(0, 1)


def spaced(start: int, stop: int, count: int) -> list[int]:
    """Return `count` numbers at even distances from `start` to `stop` - 1, rounded down."""
    span = stop - 1 - start
    return [start + (span * i // (count - 1) if count > 1 else 0) for i in range(count)]
