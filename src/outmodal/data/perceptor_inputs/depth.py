"""Depth maps of perceptors."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from outmodal.data.decode import DecodeError
from outmodal.data.manifest import Dataset
from outmodal.data.perceptor_inputs.geometry import Normalize, crop_centre, scale_planes
from outmodal.data.picture import check_moments
from outmodal.data.transform import BaseInput, Transform, Value, array


class DepthInput(BaseInput):
    """The central square [channels, size, size] of a 16-bit depth map in millimetres.

    As a share of `farthest`; or, with `focal`, as disparity in pixels over `divisor`.

    Attributes:
        size: Side of the square; the short side is scaled to it bicubically.
        channels: 3 repeats the one channel.
        antialias: Whether scaling antialiases.
        rotated: Bits by which the stored values were rotated left: 3 in SUN RGB-D.
        nearest, farthest: Metres to clip to. farthest 0 clips nothing there, and takes shares
            of the map's own greatest depth.
        focal: Focal length in pixels of the stored map, for disparity = baseline * focal / depth.
        baseline: Distance of the two eyes in metres: 0.075 for Kinect, 0.095 for RealSense and
            Xtion.
        divisor: What disparity is divided by. 75 in Omnivore's public demonstration, where it is
            also the greatest disparity.
        mean, std: What to subtract and to divide by; one value, or one a channel.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["depth"] = "depth"
    size: int = Field(default=224, gt=0)
    channels: Literal[1, 3] = 3
    antialias: bool = False
    rotated: int = Field(default=0, ge=0, lt=16)
    nearest: float = Field(default=0.01, gt=0)
    farthest: float = Field(default=10.0, ge=0)
    focal: float | None = Field(default=None, gt=0)
    baseline: float = Field(default=0.075, gt=0)
    divisor: float = Field(default=1.0, gt=0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_moments(self.mean, self.std, self.channels)
        if 0 < self.farthest <= self.nearest:
            raise ValueError(f"farthest {self.farthest} is not beyond nearest {self.nearest}")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        self.spec(dataset, modality)
        return Depth(self)


class Depth(Transform):
    """Depth maps [H, W, 1] of uint16 to [channels, size, size] float32."""

    def __init__(self, config: DepthInput) -> None:
        super().__init__(config, config.shape)
        self.settings = config
        self.normalize = Normalize(config.mean, config.std)

    def __call__(self, value: Value, key: str) -> Tensor:
        s = self.settings
        plane = torch.from_numpy(self._measure(_one_channel(value)))[None, None]
        scaled = scale_planes(plane, s.size, "bicubic", s.antialias)[0]
        return self.normalize(crop_centre(scaled, s.size)).expand(self.shape).contiguous()

    def _measure(self, stored: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Return what the perceptor reads of a depth, [H, W]."""
        s = self.settings
        millimetres = (stored >> s.rotated) | (stored << (16 - s.rotated)) if s.rotated else stored
        metres = millimetres.astype(np.float32) / np.float32(1000)
        metres = metres.clip(s.nearest, s.farthest or None).astype(np.float32, copy=False)
        if s.focal is not None:
            disparity: NDArray[np.float32] = np.float32(s.baseline * s.focal / s.divisor) / metres
            return disparity
        share: NDArray[np.float32] = metres / np.float32(s.farthest or metres.max())
        return share


def _one_channel(value: Value) -> NDArray[np.uint16]:
    """Return [H, W], or raise DecodeError: a depth map of 8 bits or in false colours is useless."""
    pixels = array(value, 3)
    if pixels.dtype != np.uint16:
        raise DecodeError(
            f"expected a depth map of 16 bits in millimetres, got {pixels.dtype}: store depth as "
            "a 16-bit grey PNG"
        )
    if (pixels != pixels[:, :, :1]).any():
        raise DecodeError(f"expected a depth map of one channel, got {pixels.shape[2]}")
    return np.ascontiguousarray(pixels[:, :, 0])
