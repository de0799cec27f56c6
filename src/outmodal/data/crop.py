"""Which part of a picture is taken, and how it becomes a picture of the wanted size."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

Pixels = NDArray[Any]
Interpolation = Literal["bilinear", "bicubic"]

TRIES = 10
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int

    def scaled(self, old: tuple[int, int], new: tuple[int, int]) -> Box:
        """The same part of the picture after its size has changed from `old` to `new`."""
        if old == new:
            return self
        rows, columns = new[0] / old[0], new[1] / old[1]
        top = min(round(self.top * rows), new[0] - 1)
        left = min(round(self.left * columns), new[1] - 1)
        bottom = min(max(round((self.top + self.height) * rows), top + 1), new[0])
        right = min(max(round((self.left + self.width) * columns), left + 1), new[1])
        return Box(top, left, bottom - top, right - left)


def whole_box(height: int, width: int) -> Box:
    """All of a picture."""
    return Box(0, 0, height, width)


def centre_box(height: int, width: int, size: tuple[int, int], fraction: float = 1.0) -> Box:
    """The largest part in the middle with the aspect of `size`, times `fraction` in each axis.

    Resized to `size` it shows what scaling the shorter side to `size` / `fraction` and cutting
    out the middle shows, in one step; its edges lie on whole pixels.
    """
    scale = min(height / size[0], width / size[1]) * fraction
    tall = min(max(round(size[0] * scale), 1), height)
    wide = min(max(round(size[1] * scale), 1), width)
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def random_resized_crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> Box:
    """Draw a part as Inception's training did (Szegedy et al., 2015), and torchvision does.

    Its area is uniform in `scale` times the picture's, its aspect (width / height) log-uniform in
    `ratio`, its place uniform. What does not fit is drawn again, ten times; then it is the
    largest part in the middle whose aspect `ratio` allows.

    Args:
        height, width: The picture's.
        scale: Least and greatest share of the area.
        ratio: Least and greatest aspect.
        generator: Where the draws come from.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(TRIES):
        size, shape, down, right = generator.random(4).tolist()
        area = height * width * (scale[0] + (scale[1] - scale[0]) * size)
        aspect = math.exp(low + (high - low) * shape)
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
            return Box(top, left, tall, wide)
    return _fallback(height, width, ratio)


def _fallback(height: int, width: int, ratio: tuple[float, float]) -> Box:
    tall, wide = height, width
    if width / height < ratio[0]:
        tall = min(max(round(width / ratio[0]), 1), height)
    elif width / height > ratio[1]:
        wide = min(max(round(height * ratio[1]), 1), width)
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def read_crop(
    pixels: Pixels, box: Box, size: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Cut out `box` and resize it, antialiased: [*size, C] of the pixels' type (int32 for uint16).

    Bytes of one or three channels are resized by torch, in a quarter of Pillow's time. Where
    bilinear results differ, they do so by one grey level; bicubic ones may differ by a few, since
    Pillow rounds and clamps between its two passes where torch may take them in another order.
    Other pixels are resized by Pillow, plane by plane.

    Args:
        pixels: uint8 or uint16 [H, W, C]; the result shares no memory with it.
        box: The part to take, within the picture.
        size: Height and width of the result.
        interpolation: The filter.
    """
    part = _plain(pixels[box.top : box.top + box.height, box.left : box.left + box.width])
    if part.dtype == np.uint8 and part.shape[2] in (1, 3) and part.shape[:2] != size:
        return _by_torch(torch.from_numpy(part), size, interpolation)
    if part.shape[:2] != size:
        part = _by_pillow(part, size, interpolation)
    return torch.from_numpy(part.astype(np.int32 if part.dtype == np.uint16 else part.dtype))


def _plain(pixels: Pixels) -> Pixels:
    """The pixels as torch takes them: writable, and no axis backwards."""
    return pixels if pixels.flags.writeable and min(pixels.strides) > 0 else pixels.copy()


def _by_torch(part: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Shrink what is to be stretched across afterwards first: less work, and Pillow's order.

    torch keeps the pixels' channels together only where it sees that they are: the axis of the
    batch has to be in front before the channels move.
    """
    x = part[None].permute(0, 3, 1, 2)
    height, width = x.shape[-2:]
    if height > size[0] and width < size[1]:
        x = interpolate(x, (size[0], width), mode=mode, antialias=True)
    x = interpolate(x, size, mode=mode, antialias=True)
    return x[0].permute(1, 2, 0).contiguous()


def _by_pillow(pixels: Pixels, size: tuple[int, int], mode: Interpolation) -> Pixels:
    target, kind = (size[1], size[0]), FILTERS[mode]
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(target, kind))
        for plane in pixels.astype(np.float32).transpose(2, 0, 1)
    ]
    limit = np.iinfo(pixels.dtype).max
    rounded: Pixels = np.rint(np.stack(planes, axis=2)).clip(0, limit).astype(pixels.dtype)
    return rounded
