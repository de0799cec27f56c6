"""Arithmetic of grey and colour on batches [B, C, H, W] in 0..1."""

from __future__ import annotations

import torch
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode "L"


def luminance(x: Tensor) -> Tensor:
    """Return [B, 1, H, W]: the luminance of three channels, the mean of any other number."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = torch.split(x, 1, 1)
    return LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue


def blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return `share` of x and the rest of the other, shares above 1 going beyond x; in 0..1."""
    return torch.lerp(other.expand_as(x), x, share).clamp_(0.0, 1.0)


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of [B, 3, H, W] by [B, 1, 1] turns of the colour circle, in HSV."""
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    red, green, blue = x.unbind(1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    hue = hue + 6.0 * turns
    planes = []
    for offset in (5.0, 3.0, 1.0):
        k = (hue + offset).remainder(6.0)
        planes.append(value - chroma * torch.minimum(k, 4.0 - k).clamp_(0.0, 1.0))
    return torch.stack(planes, 1)
