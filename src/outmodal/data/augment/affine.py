"""Pictures moved by an affine map each, bilinearly, as Pillow's Image.transform moves them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def move(x: Tensor, matrix: Tensor, fill: float) -> Tensor:
    """Return [B, C, H, W] whose pixels lie where their picture's matrix says.

    Args:
        x: [B, C, H, W].
        matrix: [B, 2, 3], from a pixel's place (x, y) in the result to its place in the source;
            a pixel's centre lies half a pixel inside it.
        fill: What lies outside of the source.
    """
    height, width = x.shape[2:]
    across = torch.arange(width, dtype=x.dtype, device=x.device) + 0.5
    down = torch.arange(height, dtype=x.dtype, device=x.device) + 0.5
    of_across, of_down, shift = matrix.to(x.dtype)[..., None, None].unbind(2)
    # [B, 2, H, W]: places in the source
    place = of_across * across + of_down * down[:, None] + shift
    sizes = _pair(x, width, height).view(1, 2, 1, 1)
    inside = ((place >= 0) & (place < sizes)).all(1, keepdim=True)
    grid = (place * (2.0 / sizes) - 1.0).permute(0, 2, 3, 1)
    moved = functional.grid_sample(
        x, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return torch.where(inside, moved, moved.new_full((), fill))


def about_centre(linear: Tensor, height: int, width: int) -> Tensor:
    """Return [B, 2, 3] of linear maps [B, 2, 2] that keep the picture's centre."""
    centre = _pair(linear, width / 2, height / 2)
    shift = centre - linear @ centre
    return torch.cat((linear, shift[..., None]), 2)


def _pair(like: Tensor, first: float, second: float) -> Tensor:
    """Return [2] beside `like` without a copy from the host, for which the device would wait."""
    return torch.cat((like.new_full((1,), first), like.new_full((1,), second)))
