"""Scaling to a short side and cropping squares, with the roundings that each perceptor has."""

from __future__ import annotations

from math import ceil
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from outmodal.data.decode import DecodeError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

LONGEST = 100
"""Sides in a longer ratio are refused: scaled by the short one, the picture would be enormous."""


def scaled_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Return (height, width) with the short side at `short` and the long one rounded down.

    Raises:
        DecodeError: The sides are in a ratio beyond LONGEST.
    """
    low, high = min(height, width), max(height, width)
    if high > LONGEST * low:
        raise DecodeError(f"{height} x {width} pixels are too long and thin")
    long = int(short * high / low)
    return (long, short) if height > width else (short, long)


def to_bytes(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return uint8 pixels; 16 bits are divided by 257, so that white stays white."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    if pixels.dtype == np.uint16:
        return np.rint(pixels.astype(np.float32) / 257).astype(np.uint8)
    raise DecodeError(f"expected pixels of uint8 or uint16, got {pixels.dtype}")


def scale_bytes(pixels: NDArray[np.uint8], short: int) -> NDArray[np.uint8]:
    """Scale [H, W, 1 or 3] with Pillow's bicubic filter, which always antialiases."""
    height, width = scaled_size(pixels.shape[0], pixels.shape[1], short)
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    resized = Image.fromarray(np.ascontiguousarray(flat)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.asarray(resized).reshape(height, width, -1)


def scale_planes(
    planes: Tensor, short: int, mode: Literal["bicubic", "bilinear"], antialias: bool
) -> Tensor:
    """Scale float planes [N, C, H, W]; values beyond those of the input are kept."""
    size = scaled_size(planes.shape[2], planes.shape[3], short)
    if planes.shape[2:] == size:
        return planes
    return F.interpolate(planes, size, mode=mode, align_corners=False, antialias=antialias)


def crop_centre(planes: Tensor, size: int) -> Tensor:
    """Cut the central square out of [..., H, W]; an offset of half a pixel goes to the even one."""
    height, width = planes.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return planes[..., top : top + size, left : left + size]


def crop_three(planes: Tensor, size: int) -> list[Tensor]:
    """Cut three squares along the longer side: its start, its centre (rounded up) and its end."""
    height, width = planes.shape[-2:]
    top, left = ceil((height - size) / 2), ceil((width - size) / 2)
    if height > width:
        offsets = [(0, left), (top, left), (height - size, left)]
    else:
        offsets = [(top, 0), (top, left), (top, width - size)]
    return [planes[..., y : y + size, x : x + size] for y, x in offsets]


class Normalize:
    """Subtracts and divides by one value a channel, on the axis third from the end."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __call__(self, planes: Tensor) -> Tensor:
        """Return planes [..., C, H, W], where C may be 1 and is repeated to the constants'."""
        return (planes - self.mean) / self.std
