"""The inverse temperature that multiplies similarities: learned, or fixed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from outmodal.errors import UserError


class Scale(nn.Module):
    """exp(log_scale), at most `largest` up to rounding.

    The logarithm is learned so that the scale stays positive (CLIP, Radford et al., ICML 2021,
    section 2.5). Beyond the bound it is mirrored there: a step too far leaves a gradient that
    leads back, where a clamp has none and the scale would never fall again.

    Args:
        temperature: At the start.
        learned: Whether it is a parameter.
        largest: Bound on the scale, where it is learned.

    Attributes:
        log_scale: [1] parameter; None where the temperature is fixed.

    Raises:
        UserError: The scale is learned and would start beyond its bound.
    """

    def __init__(self, temperature: float, learned: bool, largest: float) -> None:
        super().__init__()
        if learned and 1.0 / temperature > largest * (1 + 1e-6):
            raise UserError(
                f"objective.temperature {temperature} is a scale of {1.0 / temperature:.4g}, above "
                f"objective.largest_scale {largest}: raise that, or set "
                "objective.learn_temperature to false"
            )
        self._bound = math.log(largest)
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
        log = self.log_scale.to(wide)
        return torch.where(log <= self._bound, log, 2 * self._bound - log).exp()[0]
