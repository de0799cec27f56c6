"""Zero borders that stay where they are, before a graph is made of an encoder.

BiT pads with zeros and then takes maxima. ONNX Runtime fuses the two into a pooling whose border
counts as minus infinity (github.com/microsoft/onnxruntime/pull/18136), which gives other numbers
wherever a window at the border is all negative. Borders that are joined on are left alone.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class JoinedBorder(nn.Module):
    """What nn.ConstantPad2d does, by concatenation: [B, C, H, W]."""

    def __init__(self, pad: nn.ConstantPad2d) -> None:
        super().__init__()
        self.left, self.right, self.top, self.bottom = pad.padding
        self.value = float(pad.value)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with its border."""
        b, c, h, w = x.shape
        sides = [x.new_full((b, c, h, n), self.value) for n in (self.left, self.right)]
        wide = torch.cat([sides[0], x, sides[1]], dim=3)
        width = w + self.left + self.right
        ends = [x.new_full((b, c, n, width), self.value) for n in (self.top, self.bottom)]
        return torch.cat([ends[0], wide, ends[1]], dim=2)


def with_joined_borders(module: M) -> M:
    """A copy in which every nn.ConstantPad2d is a JoinedBorder."""
    result = copy.deepcopy(module)
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ConstantPad2d):
                setattr(parent, name, JoinedBorder(child))
    return result
