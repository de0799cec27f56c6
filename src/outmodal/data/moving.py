"""The input for films."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from outmodal.data.augment import Form, Pipeline
from outmodal.data.crop import read_crop, whole_box
from outmodal.data.draws import drawing
from outmodal.data.film import read_frames
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.picture import Pixels, Size, check_moments, with_channels
from outmodal.data.transform import BaseInput, Transform, Value, array
from outmodal.data.windows import Place, check_windows, windows

if TYPE_CHECKING:
    from outmodal.data.draws import Draw

NO_KEYS = torch.zeros(1, dtype=torch.int64)


class VideoInput(BaseInput):
    """A film [frames, 3, height, width], scaled to 0..1, less `mean`, divided by `std`.

    With several clips [clips, frames, 3, height, width].

    Attributes:
        frames: Frames of a clip; a shorter one repeats some.
        size: Height and width.
        window: Where clips lie: "whole" takes the whole film, the others windows of `seconds`,
            see `outmodal.data.windows`. "random" draws anew for every film and epoch of training.
        clips: Windows.
        seconds: Length of a window; a shorter film gives the same one for every clip.
        sampling: Which frames of a window: "even" ones from the first to the last; or "random",
            one out of each of equal parts in training and even ones elsewhere.
        rate: Frames a second of films that do not say it.
        mean, std: One value, or one for each colour.
    """

    kinds: ClassVar[tuple[str, ...]] = ("video",)
    forms: ClassVar[tuple[Form, ...]] = ("pixels",)
    name: Literal["video"] = "video"
    frames: int = Field(default=8, gt=0)
    size: Size = (112, 112)
    window: Literal["whole"] | Place = "whole"
    clips: int = Field(default=1, gt=0)
    seconds: float = Field(default=2.0, gt=0)
    sampling: Literal["even", "random"] = "even"
    rate: float = Field(default=30.0, gt=0)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_moments(self.mean, self.std, 3)
        check_windows(self.window, self.clips)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        lead = (self.clips,) if self.clips > 1 else ()
        return (*lead, self.frames, 3, *self.size)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        self.spec(dataset, modality)
        return VideoTransform(self)


class VideoTransform(Transform):
    """Films [F, H, W, 3] of uint8 to [frames, 3, H, W] float32; the compact form is uint8.

    From a file it decodes what it needs only, at the frame rate that the file says.
    """

    def __init__(self, config: VideoInput) -> None:
        super().__init__(config, config.shape)
        self.settings = config
        self.mean = torch.tensor(config.mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(config.std, dtype=torch.float32).view(-1, 1, 1)
        self.pipeline = Pipeline(config.augment, config.strong)
        self.random = (
            self.pipeline.random or config.window == "random" or config.sampling == "random"
        )

    @property
    def stored(self) -> tuple[tuple[int, ...], torch.dtype]:
        return self.shape, torch.uint8

    def __call__(self, value: Value, key: str) -> Tensor:
        return self.finish(self.compact(value, key)[None], NO_KEYS)[0]

    def compact(self, value: Value, key: str, draw: Draw | None = None) -> Tensor:
        film = array(value, 4)
        picked = self.pick(len(film), None, key, draw)
        return self._arrange([film[i] for i in picked], key, draw)

    def from_bytes(self, spec: Modality, data: bytes, key: str, draw: Draw | None = None) -> Tensor:
        frames = read_frames(data, lambda count, rate: self.pick(count, rate, key, draw))
        return self._arrange(list(frames), key, draw)

    def pick(
        self, count: int, rate: Fraction | None, key: str, draw: Draw | None = None
    ) -> list[int]:
        """Return the numbers of the frames to take out of `count`, clip by clip."""
        s = self.settings
        generator = draw.generator(key, "frames") if drawing(draw) else None
        parts = [(0, count)]
        if s.window != "whole":
            speed = rate or Fraction(s.rate)
            found = windows(count / speed, s.seconds, s.clips, s.window, generator)
            parts = [_frames(count, start * speed, stop * speed) for start, stop in found]
        return [i for first, stop in parts for i in self._within(first, stop, generator)]

    def _within(self, first: int, stop: int, generator: np.random.Generator | None) -> list[int]:
        """Return the frames to take from `first` to `stop` - 1."""
        s = self.settings
        if s.sampling == "even" or generator is None:
            even = np.linspace(first, stop - 1, s.frames).round().astype(np.int64)
            return [int(i) for i in even]
        parts = (np.arange(s.frames) + generator.random(s.frames)) / s.frames
        return [int(i) for i in np.minimum(first + np.floor(parts * (stop - first)), stop - 1)]

    def _arrange(self, film: list[Pixels], key: str, draw: Draw | None) -> Tensor:
        """Cut out and resize the picked frames: the compact form."""
        height, width = film[0].shape[:2]
        box = self.pipeline.box(height, width, key, draw) or whole_box(height, width)
        frames = [read_crop(with_channels(f, 3), box, self.settings.size) for f in film]
        return torch.stack(frames).view(self.shape)

    def finish(self, x: Tensor, keys: Tensor, draw: Draw | None = None) -> Tensor:
        """Scale to 0..1, augment, normalise, and erase: see Transform.finish."""
        film = x.to(torch.float32).mul_(1.0 / 255.0).view(len(x), -1, *self.shape[-3:])
        film = self.pipeline.batch(film, keys, draw)
        mean, std = (m.to(x.device, non_blocking=True) for m in (self.mean, self.std))
        return self.pipeline.last(film.sub(mean).div_(std), keys, draw).view(x.shape)


def _frames(count: int, start: Fraction, stop: Fraction) -> tuple[int, int]:
    """Return the frames of a window as (first, one after the last), at least one of them."""
    first = min(ceil(start), count - 1)
    return first, max(min(ceil(stop), count), first + 1)
