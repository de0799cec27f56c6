"""Pictures of perceptors: RGB images, and thermal ones."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from outmodal.data.manifest import Dataset
from outmodal.data.perceptor_inputs.geometry import (
    CLIP_MEAN,
    CLIP_STD,
    Normalize,
    crop_centre,
    scale_bytes,
    scale_planes,
    to_bytes,
)
from outmodal.data.picture import Pixels, check_moments, scale, with_channels
from outmodal.data.transform import BaseInput, Transform, Value, array


class CroppedImageInput(BaseInput):
    """A picture's central square [channels, size, size], its short side scaled to `size`.

    Grey pictures are repeated and colour ones reduced to luminance where 1 and 3 meet; the
    decoder has already made RGB of palettes, CMYK and transparency. 16 bits are scaled like 8.

    Attributes:
        size: Side of the square.
        channels: 3, or 1.
        filter: "pillow" scales 8-bit pixels with Pillow's antialiased bicubic filter; "tensor"
            scales floats bicubically and does not clamp what overshoots.
        antialias: Whether "tensor" antialiases. torchvision did not before 0.17, and does now.
        mean, std: What to subtract from 0..1 and to divide by; one value, or one a channel.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["cropped_image"] = "cropped_image"
    size: int = Field(default=224, gt=0)
    channels: Literal[1, 3] = 3
    filter: Literal["pillow", "tensor"] = "pillow"
    antialias: bool = False
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_moments(self.mean, self.std, self.channels)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        self.spec(dataset, modality)
        return CroppedImage(self)


class CroppedImage(Transform):
    """Pictures [H, W, C] of uint8 or uint16 to [channels, size, size] float32."""

    def __init__(self, config: CroppedImageInput) -> None:
        super().__init__(config, config.shape)
        self.settings = config
        self.normalize = Normalize(config.mean, config.std)

    def __call__(self, value: Value, key: str) -> Tensor:
        pixels = with_channels(array(value, 3), self.settings.channels)
        scaled = self._by_pillow(pixels) if self.settings.filter == "pillow" else self._by(pixels)
        return self.normalize(crop_centre(scaled, self.settings.size)).contiguous()

    def _by_pillow(self, pixels: Pixels) -> Tensor:
        scaled = scale_bytes(to_bytes(pixels), self.settings.size)
        return planes(scaled.astype(np.float32) / np.float32(255))

    def _by(self, pixels: Pixels) -> Tensor:
        s = self.settings
        return scale_planes(planes(scale(pixels))[None], s.size, "bicubic", s.antialias)[0]


def planes(pixels: Pixels) -> Tensor:
    """Return [C, H, W] for float pixels [H, W, C]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
