"""Pillow's point operations as tables of 256 levels for each picture and channel.

A table is a tensor [B, C, 256] or [B, 1, 256] float32 of levels; `lookup` applies it. The numbers
are those of Pillow's ImageOps and ImageEnhance for pictures of 8 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 256


def lookup(levels: Tensor, table: Tensor) -> Tensor:
    """Return the table's entries: [B, C, H, W] int64 and [B, C, 256] to [B, C, H, W] float32."""
    return table.gather(2, levels.flatten(2)).view(levels.shape)


def histogram(levels: Tensor) -> Tensor:
    """Count the levels of [B, C, H, W] int64: [B, C, 256] int64."""
    flat = levels.flatten(2)
    counts = torch.zeros(*flat.shape[:2], LEVELS, dtype=torch.int64, device=levels.device)
    return counts.scatter_add_(2, flat, torch.ones_like(flat))


def identity(device: torch.device) -> Tensor:
    """Return the table that changes nothing, [1, 1, 256]."""
    return torch.arange(LEVELS, dtype=torch.float32, device=device).view(1, 1, LEVELS)


def autocontrast(counts: Tensor) -> Tensor:
    """Stretch each channel to the full range; [B, C, 256] of its histogram."""
    ramp = identity(counts.device)
    found = counts > 0
    low = found.long().argmax(2, keepdim=True)
    high = LEVELS - 1 - found.flip(2).long().argmax(2, keepdim=True)
    # in double precision as Pillow computes: the integer part of a product decides
    scale = 255.0 / (high - low).clamp(min=1).double()
    stretched = (ramp * scale - low * scale).trunc().clamp(0.0, 255.0).float()
    return torch.where(high > low, stretched, ramp)


def equalize(counts: Tensor) -> Tensor:
    """Spread each channel's levels evenly; [B, C, 256] of its histogram."""
    ramp = identity(counts.device)
    brightest = LEVELS - 1 - (counts > 0).flip(2).long().argmax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, brightest)) // 255
    before = counts.cumsum(2) - counts
    spread = (step // 2 + before) // step.clamp(min=1)
    return torch.where(step > 0, spread.clamp(max=255).float(), ramp)


def solarize(threshold: Tensor) -> Tensor:
    """Turn levels from `threshold` [B] on into their negative; [B, 1, 256]."""
    ramp = identity(threshold.device)
    return torch.where(ramp < threshold.view(-1, 1, 1), ramp, 255.0 - ramp)


def posterize(bits: Tensor) -> Tensor:
    """Keep the highest `bits` [B] of each level; [B, 1, 256]."""
    ramp = identity(bits.device)
    step = torch.exp2(8.0 - bits.float()).view(-1, 1, 1)
    return (ramp / step).floor() * step


def toward(degenerate: Tensor, factor: Tensor) -> Tensor:
    """Blend with one level: `factor` [B] of the picture, the rest of `degenerate` [B]."""
    return mix(identity(factor.device), degenerate.view(-1, 1, 1), factor.view(-1, 1, 1))


def mix(levels: Tensor, degenerate: Tensor, factor: Tensor) -> Tensor:
    """Pillow's Image.blend of levels, cut to whole ones."""
    return (degenerate + factor * (levels - degenerate)).clamp(0.0, 255.0).floor()


def grey(levels: Tensor) -> Tensor:
    """Return the luminance [B, 1, H, W] int64 of levels, in Pillow's whole-number arithmetic."""
    if levels.shape[1] == 1:
        return levels
    if levels.shape[1] != 3:
        return levels.float().mean(1, keepdim=True).round().long()
    red, green, blue = torch.split(levels, 1, 1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
