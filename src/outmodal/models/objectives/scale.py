"""The inverse temperature that multiplies similarities: learned, or fixed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """exp(log_scale), at most `largest`.

    The logarithm is learned so that the scale stays positive (CLIP, Radford et al., ICML 2021,
    section 2.5). At the bound its gradient is zero.

    Attributes:
        log_scale: [1] parameter; None where the temperature is fixed.
    """

    def __init__(self, temperature: float, learned: bool, largest: float) -> None:
        super().__init__()
        self._largest = largest
        self._fixed = 1.0 / temperature
        start = torch.tensor([math.log(1.0 / temperature)])
        self.log_scale = nn.Parameter(start) if learned else None

    def forward(self) -> Tensor | float:
        """The scale: a scalar with gradient where it is learned, else a number.

        A number stays on the host, where kernels read it without waiting for a device.
        """
        if self.log_scale is None:
            return self._fixed
        wide = torch.promote_types(self.log_scale.dtype, torch.float32)
        return self.log_scale.to(wide).exp().clamp(max=self._largest)[0]
